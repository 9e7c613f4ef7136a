"""What all readers share: their kinds, loading a model, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ance_cli.formats.dataset import Passage
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.hub import SUFFIXES
from ance_cli.models.pretrained import load_pretrained

Kind = Literal["dpr", "extractive", "seq2seq", "causal"]


class Answer(NamedTuple):
    """A reader's answer.

    `score` is the passage's relevance logit (dpr), the span's start and end logits minus those of
    the null answer (extractive; below 0 the model prefers not to answer), or the log-probability of
    the generated text. `place` is the position of the passage, None for a generated answer.
    """

    text: str
    score: float
    place: int | None = None


class Reader(Protocol):
    """An opened reader."""

    dtype: str
    num_cut: int
    """Questions so far that were read without a part of their own text or of their passages."""

    def __call__(self, question: str, passages: Sequence[Passage]) -> Answer | None:
        """The answer from passages in the order of their rank; None if they have no text."""


def backbone_folder(checkpoint: Checkpoint) -> Path:
    """The folder of a reader's config, weights and tokenizer."""
    return checkpoint.tower("passage").backbone


def model_fingerprint(checkpoint: Checkpoint, kind: Kind) -> str:
    """Hash of what a model's texts depend on: its kind, weights, tokenizer and config files."""
    files = {
        path.name: hash_file(path)
        for path in sorted(backbone_folder(checkpoint).iterdir())
        if path.suffix in SUFFIXES
    }
    return hash_json({"kind": kind, "files": files})


def load_model(checkpoint: Checkpoint, kind: Kind, dtype: Any) -> Any:
    """The complete model of an extractive reader in a torch number format, for inference;
    `BadInput` if it does not load."""
    import transformers

    loaders: dict[Kind, Any] = {
        "dpr": transformers.DPRReader,
        "extractive": transformers.AutoModelForQuestionAnswering,
    }
    model = load_pretrained(
        loaders[kind],
        backbone_folder(checkpoint),
        checkpoint.shown,
        "reader",
        "name a model that was trained to read; a plain language model has no span head",
        dtype=dtype,
    )
    return model.eval().requires_grad_(False)


def cut(tokenizer: Any, text: str, tokens: int) -> str:
    """The beginning of a text: at most its first `tokens` tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]
