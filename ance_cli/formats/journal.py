"""A journal of finished results, so that a repeated command continues where a killed one stopped.

It serves outputs that are one file, written at the end from many small results that each take long:
the scores of a cross-encoder, the answers of a reader. The same command always computes the results
in the same order, so the journal is read like a tape. A record has one result, and a hash of the
result and its key. Records are returned as long as their hashes fit the requested keys. The journal
is cut at the first record that does not fit, for instance an incomplete one, and continued there.
`Plan.journal` checks that the journal belongs to the same command.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_bytes

RECORDS = "records"
_HEAD = struct.Struct("<Qd32s")
"""Before each result: its length in bytes, the seconds that it took, and a hash (hexadecimal) of
the key, the seconds and the result."""


class Journal:
    """The journal of one output; leaving the context without an error, or without a result, removes
    it.

    `begin` creates or finds the folder of the journal, and is called for the first result; with
    None, no result is kept. Every record is written to the system at once, so that a killed process
    loses only the current result. Records are not synced to the disk, because the hash exposes a
    record that a power failure left incomplete. `output` is the path that errors name.
    """

    def __init__(
        self, begin: Callable[[], Path] | None = None, output: Path = Path("journal")
    ) -> None:
        self._begin, self._output = begin, output
        self._folder: Path | None = None
        self._file: IO[bytes] | None = None
        self._is_playing = True
        self.was_kept = False
        """Whether the last result came from the journal."""
        self.seconds_before = 0.0
        """The time that the results from the journal took to compute."""

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # the disk is full, which `error` reports
                self._file.close()
        if self._folder is not None and (kind is None or self._is_empty(self._folder)):
            atomic.remove(self._folder)

    @staticmethod
    def _is_empty(folder: Path) -> bool:
        records = folder / RECORDS
        return not (records.exists() and records.stat().st_size)

    def result(self, key: bytes, compute: Callable[[], bytes]) -> bytes:
        """The next result, from the journal or computed and added to it.

        `key` identifies the result. Raises `ResourceExhausted` if the disk is full.
        """
        if self._begin is None:
            return compute()
        file = self._file = self._file or self._open(self._begin)
        if self._is_playing:
            at = file.tell()
            if (kept := _next(file, key)) is not None:
                found, seconds = kept
                self.was_kept = True
                self.seconds_before += seconds
                return found
            self._is_playing = self.was_kept = False
            file.seek(at)
            file.truncate()
        started = time.monotonic()
        found = compute()
        seconds = time.monotonic() - started
        with atomic.disk_errors(self._output):
            file.write(_HEAD.pack(len(found), seconds, _hash(key, seconds, found)) + found)
            file.flush()
        return found

    def _open(self, begin: Callable[[], Path]) -> IO[bytes]:
        self._folder = begin()
        with atomic.disk_errors(self._output):
            records = self._folder / RECORDS
            records.touch()
            return open(records, "r+b")


def _next(file: IO[bytes], key: bytes) -> tuple[bytes, float] | None:
    """The next record's result and seconds; None if there is none for this key."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    length, seconds, digest = _HEAD.unpack(head)
    if length > os.fstat(file.fileno()).st_size - file.tell():  # damaged: the length is arbitrary
        return None
    found = file.read(length)
    return (found, seconds) if digest == _hash(key, seconds, found) else None


def _hash(key: bytes, seconds: float, found: bytes) -> bytes:
    return hash_bytes(key, struct.pack("<d", seconds), found).encode()
