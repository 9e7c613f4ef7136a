"""Generative readers: the text that a language model generates after a prompt with the passages."""

from __future__ import annotations

from collections.abc import Sequence

from ance_cli.config import ComputeConfig, ReadConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.reading_model import Answer, Kind, cut, load_model

GENERATED_ANSWER = 32
"""Tokens of a generated answer."""

PROMPT = (
    "Answer the question with a few words, from the passages.\n\n"
    "{passages}Question: {question}\nAnswer:"
)
PROMPT_PASSAGE = "Passage {rank}: {passage}\n\n"

_WINDOW_WHERE_UNSTATED = 512


class GenerativeReader:
    """Greedy generation after a prompt with the first passages, as many as fit. A model with a chat
    template gets the prompt as the user's message."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ReadConfig,
        compute: ComputeConfig,
        *,
        kind: Kind,
    ) -> None:
        from ance_cli.models.devices import choose_devices, choose_dtype, torch_dtype
        from ance_cli.models.tokens import load_tokenizer

        self._device = choose_devices(compute.gpus)[0]
        self.dtype = choose_dtype(compute.dtype, self._device)
        self._tokenizer = load_tokenizer(checkpoint.tower("passage"))
        self._model = load_model(checkpoint, kind, torch_dtype(self.dtype)).to(self._device)
        self.num_cut = 0
        self._new_tokens = config.answer_tokens or GENERATED_ANSWER
        self._room = self._window() - (self._new_tokens if kind == "causal" else 0)
        if len(self._tokens("", [])) >= self._room:
            raise BadInput(
                f"{checkpoint.shown}: no passage fits in its window after the prompt",
                hint="lower --answer-tokens, or name a reader with a larger window",
            )

    def __call__(self, question: str, passages: Sequence[Passage]) -> Answer | None:
        import torch

        texts = [text for text in (passage.joined(": ") for passage in passages) if text]
        if not texts:
            return None
        ids = self._prompt(question, texts)
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=torch.tensor([ids], device=self._device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=self._new_tokens,
                pad_token_id=self._tokenizer.pad_token_id or 0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = found.sequences[0, -len(found.logits) :]  # (generated tokens,)
        logits = torch.stack(found.logits)[:, 0].float()  # (generated tokens, vocabulary)
        score = logits.log_softmax(-1).gather(1, new[:, None]).sum()
        text = self._tokenizer.decode(new, skip_special_tokens=True).strip()
        # a model that was not trained to stop writes another question
        return Answer(text.split("\n")[0].strip(), float(score))

    def _window(self) -> int:
        """Tokens that the model takes: the smallest limit in its config and its tokenizer."""
        config = self._model.config.get_text_config()
        stated = [
            getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")
        ]
        stated.append(self._tokenizer.model_max_length)
        known = [int(number) for number in stated if number and number < 1e9]
        return min(known, default=_WINDOW_WHERE_UNSTATED)

    def _tokens(self, question: str, texts: Sequence[str]) -> list[int]:
        passages = "".join(
            PROMPT_PASSAGE.format(rank=rank, passage=text) for rank, text in enumerate(texts, 1)
        )
        prompt = PROMPT.format(passages=passages, question=question)
        chat = bool(self._tokenizer.chat_template)
        if chat:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
        found = self._tokenizer(prompt, add_special_tokens=not chat, verbose=False)
        return list(found["input_ids"])

    def _prompt(self, question: str, texts: Sequence[str]) -> list[int]:
        """The prompt's tokens: whole passages as long as they fit, then the beginning of the next
        one."""
        whole, question = question, cut(self._tokenizer, question, self._room // 3)
        kept: list[str] = []
        ids = self._tokens(question, kept)
        for text in texts:
            longer = self._tokens(question, [*kept, text])
            over = len(longer) - self._room
            if over > 0:
                size = len(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
                while 0 < over < size:
                    size -= over
                    longer = self._tokens(question, [*kept, cut(self._tokenizer, text, size)])
                    over = len(longer) - self._room
                self.num_cut += 1
                return ids if over > 0 else longer
            kept.append(text)
            ids = longer
        self.num_cut += question != whole
        return ids
