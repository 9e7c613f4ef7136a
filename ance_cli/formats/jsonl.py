"""Reads and writes JSON lines and other text files from outside.

This module alone decides how an input opens (`-` is stdin, `.gz` and `.zst` are recognised by name)
and how a broken line is reported: `file:line: what was found`. With a `SkippedLines` collector,
broken lines are collected instead of ending the command.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from ance_cli.call import SkippedLines
from ance_cli.config.calling import LONGEST_LINE
from ance_cli.errors import BadInput, UsageProblem, naming
from ance_cli.formats import atomic

STDIO = Path("-")
BOM = b"\xef\xbb\xbf"
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""Exceptions of reading a compressed file that is cut short or damaged."""

_FIX = "fix the line, or skip bad lines with --skip-bad"


def is_stream(path: Path) -> bool:
    """Whether an output is stdout, a device or a pipe: written into, without files next to it."""
    return path == STDIO or atomic.is_device(path)


def refuse(problem: BadInput, skipped: SkippedLines | None) -> None:
    """Raise the problem of a line, or collect it if broken lines are skipped."""
    if skipped is None:
        problem.hint = problem.hint or _FIX
        raise problem
    skipped.note(problem)


class _ZstReader(io.RawIOBase):
    """Decompresses zstd; unlike the library's own reader, it notices a file that is cut short."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            rest = self._frame.unused_data if self._frame.eof else b""
            data = rest or self._raw.read(1 << 12)  # a few bytes may unpack to megabytes
            if not data:
                if not self._frame.eof:
                    raise EOFError("the file ends within a frame")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


class _CountedFile(io.FileIO):
    """A file that reports the number of bytes of each read, and is named in a failed one."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None) -> None:
        super().__init__(path, "rb")
        self._path, self._on_bytes = path, on_bytes

    def readinto(self, buffer: Any) -> int:
        with naming(self._path):
            count = super().readinto(buffer) or 0
        if self._on_bytes:
            self._on_bytes(count)
        return count


@contextmanager
def open_input(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes: stdin for `-`, decompressed for `.gz` and `.zst`.

    `on_bytes` is called with the number of bytes on disk of each read from a file.
    """
    if path == STDIO:
        if sys.stdin is None:
            raise UsageProblem(
                "stdin is closed, so - cannot be read", hint="pipe the input in, or name a file"
            )
        yield sys.stdin.buffer
        return
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, expected a file", hint="name the file itself")
    try:
        raw = io.BufferedReader(_CountedFile(path, on_bytes))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="check the path") from None
    except PermissionError:
        raise BadInput(f"{path}: permission denied", hint="check its permissions") from None
    with raw:
        if path.suffix == ".gz":
            with gzip.open(raw, "rb") as handle:
                yield handle  # type: ignore[misc]
        elif path.suffix == ".zst":
            yield io.BufferedReader(_ZstReader(raw), 1 << 20)
        else:
            yield raw


def longest_line() -> int:
    """Bytes of the longest line that is read: `ANCE_LONGEST_LINE` in MiB, which --longest-line sets
    for a command and its children, or 16 MiB."""
    return int(os.environ.get("ANCE_LONGEST_LINE") or LONGEST_LINE) << 20


def name_of(path: Path) -> str:
    """How messages name an input."""
    return "stdin" if path == STDIO else str(path)


def read_lines(
    path: Path, on_bytes: Callable[[int], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a text file with their numbers from 1, except blank lines.

    A byte order mark at the start is removed. `on_bytes` is passed to `open_input`. Raises
    `BadInput` for a line that is longer, decompressed, than `longest_line()`.
    """
    number, limit = 0, longest_line()
    with open_input(path, on_bytes) as handle:
        try:
            for number, line in enumerate(iter(lambda: handle.readline(limit + 1), b""), start=1):
                if len(line) > limit:
                    raise BadInput(
                        f"{path}:{number}: the line is longer than {limit >> 20} MiB",
                        hint="split the text, or allow longer lines with --longest-line MIB; "
                        "memory grows with the longest text",
                    )
                if number == 1 and line.startswith(BOM):
                    line = line[len(BOM) :]
                line = line.rstrip(b"\r\n")
                if line.strip():
                    yield number, line
        except DAMAGE as error:
            raise damaged(f"{path}:{number + 1}", error) from error


def damaged(where: str, error: Exception) -> BadInput:
    """The error for a compressed file whose reading ended with one of `DAMAGE`."""
    return BadInput(
        f"{where}: the compressed file is cut short or damaged ({error})",
        hint="download or compress the file again",
    )


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line; the message of `BadInput` begins with `where`."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        start = line[:60].decode("utf-8", "replace")
        raise BadInput(f"{where}: not valid JSON ({error}); the line begins {start!r}") from error
    if not isinstance(record, dict):
        raise BadInput(
            f"{where}: expected one JSON object per line, found {type(record).__name__}",
            hint='a line looks like {"_id": "d1", "text": "..."}',
        )
    return record


def read_records(
    path: Path,
    skipped: SkippedLines | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a JSON-lines file with their line numbers."""
    for number, line in read_lines(path, on_bytes):
        try:
            record = parse_object(line, f"{path}:{number}")
        except BadInput as problem:
            problem.hint = problem.hint or (
                f"look at the line with: sed -n {number}p {path}; fix it, or skip bad lines with "
                "--skip-bad"
            )
            refuse(problem, skipped)
            continue
        yield number, record


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a text file that is written whole or not at all; a link is followed to its file.

    `-` is stdout; a name that ends in `.gz` or `.zst` is compressed. A device or a pipe is written
    into.
    """
    if path == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = (
        atomic.open_device(path)
        if atomic.is_device(path)
        else atomic.new_file(atomic.place_of(path))
    )
    with target as raw, compressed(raw, path) as handle:
        yield handle


@contextmanager
def compressed(raw: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Wrap a handle so that it compresses if `path` ends in `.gz` or `.zst`."""
    if path.suffix == ".gz":
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as handle:
            yield handle  # type: ignore[misc]
    elif path.suffix == ".zst":
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as stream:
            yield stream
    else:
        yield raw


def refuse_stdio(path: Path, what: str) -> None:
    """Refuse `-` as the output of an artifact that is a folder."""
    if path == STDIO:
        raise UsageProblem(
            f"{what} cannot be written to stdout: the output is a folder",
            hint="name a folder with -o DIR",
        )
