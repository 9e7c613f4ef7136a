"""A journal of finished pieces of work, so that a repeated command goes on where a killed one was.

For an output that is one file and is written at the end, from many small results that each took
long: the scores of a cross-encoder, the answers of a reader. The pieces come in the same order
whenever the same command runs, so the journal is a tape: each record holds one result and a hash of
it together with what it is the result of. It is played back as long as the records fit what is
asked for, and cut at the first that does not (other settings, a record that a kill left half
written); from there on it is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_bytes

_LENGTH = 8
"""Bytes of a record's first field, the length of the result, little-endian."""
_HASH = 32
"""Bytes of its second, `hash_bytes(key, result)` in hexadecimal. The result follows."""


class Journal:
    """The journal of one output, made with its first record; leaving it without an error removes
    it.

    `path` None keeps nothing. Records are handed to the system at once, so that a killed process
    loses the piece in hand; they are not forced to the disk, since the hash tells a record that a
    power cut left incomplete.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._is_playing = True

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
        if self._path is not None and kind is None:
            self._path.unlink(missing_ok=True)

    def result(self, key: bytes, compute: Callable[[], bytes]) -> bytes:
        """The result of the next piece: as it was kept, or computed now and kept.

        `key` says all that the result depends on. Raises `MachineGaveOut` where the disk is full.
        """
        if self._path is None:
            return compute()
        with atomic.disk_errors(self._path):
            file = self._file = self._file or self._open(self._path)
            if self._is_playing:
                at = file.tell()
                if (found := _next(file, key)) is not None:
                    return found
                self._is_playing = False
                file.seek(at)
                file.truncate()
        found = compute()
        with atomic.disk_errors(self._path):
            file.write(len(found).to_bytes(_LENGTH, "little"))
            file.write(hash_bytes(key, found).encode() + found)
            file.flush()
        return found

    def _open(self, path: Path) -> IO[bytes]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return open(path, "r+b")


def _next(file: IO[bytes], key: bytes) -> bytes | None:
    """The next record's result, None where there is none for this key."""
    length = int.from_bytes(file.read(_LENGTH), "little")
    digest = file.read(_HASH)
    if length > os.fstat(file.fileno()).st_size - file.tell():  # damaged: its length is anything
        return None
    found = file.read(length)
    return found if digest == hash_bytes(key, found).encode() else None
