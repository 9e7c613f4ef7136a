"""Generative readers: the text that a language model generates after a prompt with the passages."""

from __future__ import annotations

from collections.abc import Sequence

from ance_cli.config import ComputeConfig, ReadConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.language_model import LanguageModel, LanguageModelKind
from ance_cli.models.reading_model import Answer

GENERATED_ANSWER = 32
"""Tokens of a generated answer."""

PROMPT = (
    "Answer the question with a few words, from the passages.\n\n"
    "{passages}Question: {question}\nAnswer:"
)
PROMPT_PASSAGE = "Passage {rank}: {passage}\n\n"


class GenerativeReader:
    """Greedy generation after a prompt with the first passages, as many as fit. A model with a chat
    template gets the prompt as the user's message."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ReadConfig,
        compute: ComputeConfig,
        *,
        kind: LanguageModelKind,
    ) -> None:
        new_tokens = config.answer_tokens or GENERATED_ANSWER
        self._model = LanguageModel(checkpoint, kind, compute, new_tokens)
        self.dtype = self._model.dtype
        self.num_cut = 0
        if len(self._tokens("", [])) >= self._model.room:
            raise BadInput(
                f"{checkpoint.shown}: no passage fits in its window after the prompt",
                hint="lower --answer-tokens, or name a reader with a larger window",
            )

    def __call__(self, question: str, passages: Sequence[Passage]) -> Answer | None:
        import torch

        texts = [text for text in (passage.joined(": ") for passage in passages) if text]
        if not texts:
            return None
        new, found = self._model.generate([self._prompt(question, texts)], output_logits=True)
        logits = torch.stack(found.logits)[:, 0].float()  # (generated tokens, vocabulary)
        score = logits.log_softmax(-1).gather(1, new[0, :, None]).sum()
        # a model that was not trained to stop writes another question
        return Answer(self._model.text(new[0]).strip().split("\n")[0].strip(), float(score))

    def _tokens(self, question: str, texts: Sequence[str]) -> list[int]:
        passages = "".join(
            PROMPT_PASSAGE.format(rank=rank, passage=text) for rank, text in enumerate(texts, 1)
        )
        return self._model.tokens(PROMPT.format(passages=passages, question=question))

    def _prompt(self, question: str, texts: Sequence[str]) -> list[int]:
        """The prompt's tokens: whole passages as long as they fit, then the beginning of the next
        one."""
        room = self._model.room
        whole, question = question, self._model.cut(question, room // 3)
        kept: list[str] = []
        ids = self._tokens(question, kept)
        for text in texts:
            longer = self._tokens(question, [*kept, text])
            over = len(longer) - room
            if over > 0:
                size = self._model.size(text)
                while 0 < over < size:
                    size -= over
                    longer = self._tokens(question, [*kept, self._model.cut(text, size)])
                    over = len(longer) - room
                self.num_cut += 1
                return ids if over > 0 else longer
            kept.append(text)
            ids = longer
        self.num_cut += question != whole
        return ids
