"""Cuts documents into passages at paragraphs, sentences and words, by semantic-text-splitter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

DEFAULT_CHARACTERS = 1000
"""About 200 to 250 tokens of English: a paragraph or two, as passages of MS MARCO and NQ."""


@dataclass(frozen=True)
class Chunker:
    """Cuts texts into passages of at most `characters`."""

    characters: int = DEFAULT_CHARACTERS

    def cut(self, text: str, is_markdown: bool = False) -> Iterator[str]:
        """The passages of a text in order, without blank ones."""
        splitter = self._markdown if is_markdown else self._plain
        for passage in splitter.chunks(text):
            if passage.strip():
                yield passage.strip()

    @cached_property
    def _plain(self) -> Any:
        from semantic_text_splitter import TextSplitter

        return TextSplitter(self.characters)

    @cached_property
    def _markdown(self) -> Any:
        from semantic_text_splitter import MarkdownSplitter

        return MarkdownSplitter(self.characters)
