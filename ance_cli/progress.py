"""How a command reports its progress, independent of how it is shown.

The library reports to a `Reporter`; `cli/console.py` draws it with rich, and a caller from Python
who passes nothing gets silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One task under way."""

    def advance(self, amount: int = 1) -> None: ...

    def describe(self, text: str) -> None:
        """Replace the text next to the bar, for instance with the loss."""


class Reporter(Protocol):
    """Where a stage sends its words and its progress."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def task(self, name: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        """Open a progress bar over `total` units, `done` of which an earlier call finished."""


class _SilentBar:
    def advance(self, amount: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


class Silent:
    """The reporter of somebody who wants no words."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        yield _SilentBar()
