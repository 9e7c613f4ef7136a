"""What the writers of queries share: the prompt, what they return, and the answer's query."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ance_cli.formats.dataset import Passage

PASSAGE_ALONE = "{title} {text}"
"""The prompt of models that were trained to turn a passage into a query, as doc2query
(Nogueira et al., arXiv 1904.08375)."""

INSTRUCTION = (
    "Write one search query that the passage answers. Write nothing but the query.\n\n"
    "Passage: {title}\n{text}\n\nQuery:"
)

_FIELD = re.compile(r"\{(title|text)\}")


@dataclass(frozen=True)
class Written:
    """What a writer returned for one passage."""

    queries: list[str] = field(default_factory=list)
    """One per draw; an empty answer is ''."""
    refused: str | None = None
    """Why the passage was refused; None if it was not."""


class Writer(Protocol):
    """Writes queries for passages, a batch at a time."""

    batch: int
    """Passages of a batch."""

    def __call__(self, passages: Sequence[Passage], start: int) -> Iterator[Written]:
        """What is written for the passages of a batch from place `start` on, in their order."""


class Source(Protocol):
    """A model that can be opened as a `Writer`."""

    @property
    def shaping(self) -> dict[str, Any]:
        """Settings of the source that shape the queries; `auto` is resolved by `open`."""

    @property
    def inputs(self) -> dict[str, str]:
        """Name -> fingerprint of the files of the model."""

    @property
    def reads(self) -> Sequence[Path]:
        """Folders that are read."""

    def open(self) -> Writer: ...


def filled(prompt: str, title: str, text: str) -> str:
    """The prompt with a passage; other braces are kept as they are."""
    values = {"title": title, "text": text}
    return _FIELD.sub(lambda found: values[found[1]], prompt).strip()


def query_of(answer: str) -> str:
    """The first line of an answer that is not blank, with white space folded; '' if all are blank.

    What no UTF-8 file can hold is replaced by a question mark.
    """
    lines = answer.encode("utf-8", "replace").decode().strip().splitlines()
    return " ".join(lines[0].split()) if lines else ""
