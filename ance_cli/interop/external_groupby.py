"""Groups records by a number, through files: triples can come in any order, and the negatives of a
pair are written on one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

_GROUPS_IN_FILE = 2048
_BUFFERED_BYTES = 1 << 24


class ExternalGroupBy:
    """Takes (group, record) in any order, and yields the records of each group together.

    Groups are numbers from 0 without large gaps, and are yielded in ascending order; the records of
    a group keep the order in which they were added. Only one file is in memory at a time.
    """

    def __init__(self, folder: Path, groups_in_file: int = _GROUPS_IN_FILE) -> None:
        self._folder = folder
        self._groups_in_file = groups_in_file
        self._buffers: dict[int, bytearray] = {}
        self._buffered = 0
        self._files: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, group: int, *record: Any) -> None:
        """Add one record of values that JSON can represent."""
        line = orjson.dumps((group, *record)) + b"\n"
        self._buffers.setdefault(group // self._groups_in_file, bytearray()).extend(line)
        self._buffered += len(line)
        if self._buffered >= _BUFFERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        for number, lines in self._buffers.items():
            with open(self._folder / str(number), "ab") as handle:
                handle.write(lines)
            self._files.add(number)
        self._buffers, self._buffered = {}, 0

    def groups(self) -> Iterator[list[list[Any]]]:
        """Yield the records of each group; each file is removed after it was read."""
        self._flush()
        for number in sorted(self._files):
            path = self._folder / str(number)
            found: dict[int, list[list[Any]]] = {}
            with open(path, "rb") as handle:
                for line in handle:
                    group, *record = orjson.loads(line)
                    found.setdefault(group, []).append(record)
            path.unlink()
            for group in sorted(found):
                yield found[group]
        self._folder.rmdir()
