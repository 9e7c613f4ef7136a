"""How a command reports its progress, independent of how it is shown.

The library reports to a `Reporter`, which `cli/console.py` implements with rich. By default,
callers from Python get no output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class Bar(Protocol):
    """The progress of one task."""

    def advance(self, amount: int = 1) -> None: ...

    def describe(self, text: str) -> None:
        """Replace the text next to the bar, for instance with the loss."""


class Reporter(Protocol):
    """Receives the messages and the progress of a command."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def task(self, name: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        """Open a progress bar over `total` units; an earlier call finished `done` units."""


class _SilentBar:
    def advance(self, amount: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


class Silent:
    """A reporter that shows nothing."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        yield _SilentBar()
