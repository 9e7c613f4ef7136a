"""A journal of finished pieces of work, so that a repeated command continues a killed one.

For an output that is one file and is written at the end, from many small results that each took
long: the scores of a cross-encoder, the answers of a reader. The pieces come in the same order
whenever the same command runs, so the journal is a tape. A record holds one result and its hash
together with what it is the result of. It is played back as long as the records fit what is asked
for, and cut at the first that does not, as one that a kill left half written; from there on it is
written. Which command it belongs to is not its business (`Plan.journal`).
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
"""Length of the result in bytes, seconds that it took, and a hash (hexadecimal) of the key, these
two and the result, which follows."""


class Journal:
    """The journal of one output; leaving it without an error removes it.

    `begin` makes, or finds, the folder of the journal, and is called when the first result is
    asked for; None keeps nothing. Records are handed to the system at once, so that a killed
    process loses the piece in hand; they are not forced to the disk, since the hash shows a record
    that a power cut left incomplete. `output` is what an error names.
    """

    def __init__(
        self, begin: Callable[[], Path] | None = None, output: Path = Path("journal")
    ) -> None:
        self._begin, self._output = begin, output
        self._folder: Path | None = None
        self._file: IO[bytes] | None = None
        self._is_playing = True
        self.was_kept = False
        """Whether the last result was there already."""
        self.seconds_before = 0.0
        """What the results took that were."""

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # the disk is full, as `error` says already
                self._file.close()
        if self._folder is not None and kind is None:
            atomic.remove(self._folder)

    def result(self, key: bytes, compute: Callable[[], bytes]) -> bytes:
        """The result of the next piece: as it was kept, or computed now and kept.

        `key` says which piece it is. Raises `ResourceExhausted` where the disk is full.
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
    if length > os.fstat(file.fileno()).st_size - file.tell():  # damaged: its length is anything
        return None
    found = file.read(length)
    return (found, seconds) if digest == _hash(key, seconds, found) else None


def _hash(key: bytes, seconds: float, found: bytes) -> bytes:
    return hash_bytes(key, struct.pack("<d", seconds), found).encode()
