"""Language models that write after a prompt, sequence-to-sequence or causal, by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ance_cli.config import DeviceConfig
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.pretrained import load_pretrained
from ance_cli.models.reading_model import backbone_folder, cut

if TYPE_CHECKING:
    import torch

LanguageModelKind = Literal["seq2seq", "causal"]

_ENDINGS = ("ForConditionalGeneration", "ForCausalLM", "LMHeadModel")
_WINDOW_WHERE_UNSTATED = 512


def language_model_kind(config: Mapping[str, Any]) -> LanguageModelKind | None:
    """The kind of the language model that a `config.json` describes; None if it is none."""
    named = config.get("architectures") or ["none"]
    if not str(named[0]).endswith(_ENDINGS):
        return None
    return "seq2seq" if config.get("is_encoder_decoder") else "causal"


class LanguageModel:
    """A model and its tokenizer on the first of the chosen devices.

    `room` is the number of tokens that a prompt may have. Raises `BadInput` if the model does not
    load.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: LanguageModelKind,
        device: DeviceConfig,
        new_tokens: int,
    ) -> None:
        import transformers

        from ance_cli.models.devices import choose_devices, choose_dtype, torch_dtype
        from ance_cli.models.tokens import load_tokenizer

        loaders = {
            "seq2seq": transformers.AutoModelForSeq2SeqLM,
            "causal": transformers.AutoModelForCausalLM,
        }
        self._device = choose_devices(device.gpus)[0]
        self.dtype = choose_dtype(device.dtype, self._device)
        self._tokenizer = load_tokenizer(checkpoint.tower("passage"))
        model = load_pretrained(
            loaders[kind],
            backbone_folder(checkpoint),
            checkpoint.shown,
            "language model",
            "copy the model again, with all of its weights",
            dtype=torch_dtype(self.dtype),
        )
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._is_causal = kind == "causal"
        self._new_tokens = new_tokens
        self.room = self._window() - (new_tokens if self._is_causal else 0)

    def _window(self) -> int:
        """Tokens that the model takes: the smallest limit in its config and its tokenizer."""
        config = self._model.config.get_text_config()
        stated = [
            getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")
        ]
        stated.append(self._tokenizer.model_max_length)
        known = [int(number) for number in stated if number and number < 1e9]
        return min(known, default=_WINDOW_WHERE_UNSTATED)

    def tokens(self, prompt: str) -> list[int]:
        """The tokens of a prompt, which is the user's message if the model has a chat template."""
        chat = bool(self._tokenizer.chat_template)
        if chat:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
        found = self._tokenizer(prompt, add_special_tokens=not chat, verbose=False)
        return list(found["input_ids"])

    def size(self, text: str) -> int:
        """The number of tokens of a text, without special tokens."""
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text: at most its first `tokens` tokens."""
        return cut(self._tokenizer, text, tokens)

    def generate(
        self, prompts: Sequence[Sequence[int]], **settings: Any
    ) -> tuple[torch.Tensor, Any]:
        """New tokens after each prompt, greedy, (prompts, tokens), and transformers' output.

        Each prompt is padded to the longest: a causal model on the left, so that its new tokens
        follow the prompt. `settings` are further arguments of transformers' `generate`.
        """
        import torch

        pad = next(
            number
            for number in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
            if number is not None
        )
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            first = width - len(prompt) if self._is_causal else 0
            ids[row, first : first + len(prompt)] = torch.tensor(prompt)
            mask[row, first : first + len(prompt)] = 1
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=self._new_tokens,
                pad_token_id=pad,
                return_dict_in_generate=True,
                **settings,
            )
        return found.sequences[:, width if self._is_causal else 1 :], found

    def text(self, tokens: torch.Tensor) -> str:
        """The text of new tokens, without special tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
