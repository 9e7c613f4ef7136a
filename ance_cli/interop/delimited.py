"""Rows of comma- and tab-separated files.

An open quote never swallows the rows after it: a row that does not close its quotes is refused with
the line where it begins, and reading goes on with the next line.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.jsonl import read_lines, refuse

_MAX_LINES = 64
"""Lines that one row of a tab-separated file may have."""
_MAX_CSV_LINES = 1000
"""Lines that one row of a comma-separated file may have."""

Line = tuple[int, str]


def text_of(line: bytes, where: str) -> str:
    """A line as text; `BadInput` if it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{where}: not valid UTF-8", hint="skip bad lines with --skip-bad") from None


def _text_lines(path: Path, skipped: SkippedLines | None) -> Iterator[Line]:
    for number, line in read_lines(path):
        try:
            text = text_of(line, f"{path}:{number}")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, text


class _Lines:
    """The lines of a file, of which some can be looked at before they are taken."""

    def __init__(self, path: Path, skipped: SkippedLines | None) -> None:
        self._source = _text_lines(path, skipped)
        self._waiting: deque[Line] = deque()

    def take(self) -> Line | None:
        """The next line; None at the end."""
        return self._waiting.popleft() if self._waiting else next(self._source, None)

    def ahead(self, place: int) -> Line | None:
        """The line `place` lines after the next one, which stays to be taken."""
        while len(self._waiting) <= place:
            if (line := next(self._source, None)) is None:
                return None
            self._waiting.append(line)
        return self._waiting[place]

    def drop(self, count: int) -> None:
        """Take `count` lines that were looked at."""
        for _ in range(count):
            self._waiting.popleft()


def quoted_rows(
    path: Path, delimiter: str, count: int, skipped: SkippedLines | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with the number of their first line, the header among them.

    A cell in quotes may hold delimiters and line breaks. Each row must have `count` cells.
    """
    lines = _Lines(path, skipped)
    while line := lines.take():
        number, text = line
        cells, used = _cells(text, delimiter), 0
        if cells is None:
            cells, used = _joined(line, delimiter, count, lines)
        if cells is not None and len(cells) == count:
            lines.drop(used)
            yield number, cells
            continue
        found = "a quote that is not closed, or text after one" if cells is None else len(cells)
        problem = BadInput(
            f"{path}:{number}: expected {count} cells separated by {_name(delimiter)}, "
            f"found {found}",
            hint=f"look at it with: sed -n {number}p {path}; skip bad rows with --skip-bad",
        )
        refuse(problem, skipped)


def _joined(line: Line, delimiter: str, count: int, lines: _Lines) -> tuple[list[str] | None, int]:
    """The cells of a row that continues on the next lines, and how many; None if it never ends."""
    before, text = line
    parts = [text]
    for place in range(_MAX_CSV_LINES):
        if (following := lines.ahead(place)) is None:
            break
        number, more = following
        parts += [""] * (number - before - 1)  # blank lines inside of the quotes
        parts.append(more)
        before = number
        if '"' in more and (cells := _cells("\n".join(parts), delimiter)) is not None:
            return (cells, place + 1) if len(cells) == count else (None, 0)
    return None, 0


def _cells(text: str, delimiter: str) -> list[str] | None:
    """The cells of one row; None if its quotes are not balanced."""
    if '"' not in text:
        return text.split(delimiter)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _name(delimiter: str) -> str:
    return {"\t": "tabs", ",": "commas", ";": "semicolons"}.get(delimiter, repr(delimiter))


def tab_rows(
    path: Path, names: list[str], skipped: SkippedLines | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a tab-separated file, with the number of their first line.

    A cell may be in CSV quotes, and then have line breaks, but no tab. Some files are written
    without quotes: there a line with the right number of tabs is a row, and its quotation marks are
    text.
    """
    lines = _Lines(path, skipped)
    while line := lines.take():
        number, text = line
        cells = _one_row(text, len(names))
        if cells is None and '"' in text:
            cells = _row_of_lines(text, len(names), lines)
        if cells is None and text.count("\t") == len(names) - 1:
            cells = text.split("\t")
        if cells is not None:
            yield number, cells
            continue
        problem = BadInput(
            f"{path}:{number}: expected {len(names)} columns separated by tabs "
            f"({', '.join(names)}), found {text.count(chr(9)) + 1}"
            + (" or a quote that is not closed" if '"' in text else ""),
            hint=f"look at it with: sed -n {number}p {path}; skip bad lines with --skip-bad",
        )
        refuse(problem, skipped)


def _one_row(text: str, count: int) -> list[str] | None:
    """The cells of a row with balanced quotes; None if it is not one row of `count` cells without
    tabs."""
    cells = _cells(text, "\t")
    if cells is None or len(cells) != count or any("\t" in cell for cell in cells):
        return None
    return cells


def _row_of_lines(line: str, count: int, lines: _Lines) -> list[str] | None:
    """The row that begins with `line` and continues on the next lines; None if there is none."""
    text = line
    for place in range(_MAX_LINES):
        if (following := lines.ahead(place)) is None:
            return None
        if following[1].count("\t") >= count - 1:  # a row by itself
            return None
        text += "\n" + following[1]
        if cells := _one_row(text, count):
            lines.drop(place + 1)
            return cells
    return None
