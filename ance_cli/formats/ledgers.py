"""A run's append-only ledgers: one JSON object per line, in the order of the events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ance_cli.errors import BadInput, naming
from ance_cli.formats import atomic
from ance_cli.formats.records import check_record, parse_record

T = TypeVar("T")

FOLLOW = "follow"
"""The input of a segment that follows the run's published generations."""

_BRING_BACK = "restore the file: ance writes whole lines, so something else changed it"


@dataclass(frozen=True)
class Segment:
    """A segment that was started, as recorded in `segments.jsonl`.

    `input` identifies the negatives. `negatives` is the path of their file, relative to the run if
    the file is inside the run.
    """

    segment: int
    start_step: int
    steps: int
    input: str
    negatives: str | None = None
    generation: int | None = None
    checkpoint_step: int | None = None
    started: str = ""

    @property
    def end_step(self) -> int:
        return self.start_step + self.steps

    @property
    def follows(self) -> bool:
        """Whether it trains on the run's generations as they are published."""
        return self.input == FOLLOW


@dataclass(frozen=True)
class Switch:
    """The batch of `step` is the first one on the negatives of `generation`."""

    step: int
    generation: int


@dataclass(frozen=True)
class _Finished:
    finished: int


@dataclass(frozen=True)
class _Step:
    step: int


@dataclass
class SegmentLedger:
    """The segments of a run that were started, oldest first, and the numbers of the ended ones."""

    begun: list[Segment] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)

    @property
    def unfinished(self) -> Segment | None:
        """The last segment, unless it ended."""
        last = self.begun[-1] if self.begun else None
        return None if last is None or last.segment in self.finished else last

    def add(self, record: dict[str, Any], where: str) -> None:
        """Add a line; the message of `BadInput` begins with `where`."""
        if "finished" in record:
            self.finished.add(check_record(record, _Finished, where, _BRING_BACK).finished)
        else:
            self.begun.append(check_record(record, Segment, where, _BRING_BACK))

    @classmethod
    def read(cls, path: Path) -> SegmentLedger:
        """The ledger in a file; `BadInput` if a line is broken."""
        found = cls()
        for number, line in _lines(path):
            where = f"{path}:{number}"
            found.add(parse_record(line, dict[str, Any], where, _BRING_BACK), where)
        return found

    @classmethod
    def of_readable(cls, records: Iterable[dict[str, Any]]) -> SegmentLedger:
        """The ledger without its broken records."""
        found = cls()
        for record in records:
            with suppress(BadInput):
                found.add(record, "")
        return found


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The records of a ledger with all their fields."""
    return [record for record in read_ledger_as(path, dict[str, Any]) if record]


def read_ledger_as(path: Path, kind: type[T]) -> list[T]:
    """The records of a ledger, of the declared type.

    A last line without a newline is ignored: a kill cut it short. Raises `BadInput` if another line
    is broken.
    """
    return [
        parse_record(line, kind, f"{path}:{number}", _BRING_BACK) for number, line in _lines(path)
    ]


def last_step(path: Path) -> int:
    """The highest step of a ledger, 0 if there is none."""
    return max((record.step for record in read_ledger_as(path, _Step)), default=0)


def cut_ledger(path: Path, last_step: int) -> None:
    """Remove the records after `last_step`."""
    if path.exists():
        kept = [
            line
            for number, line in _lines(path)
            if parse_record(line, _Step, f"{path}:{number}", _BRING_BACK).step <= last_step
        ]
        atomic.write_bytes(path, b"".join(line + b"\n" for line in kept))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines of a file with their numbers, without empty lines."""
    try:
        with naming(path):
            lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines[:-1], start=1):
        if line:
            yield number, line
