"""What an import understood of each source, shown before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ance_cli.call import SkippedLines
from ance_cli.formats.dataset import Passage, Query
from ance_cli.formats.labels import Label
from ance_cli.interop.records import Chunk, Negative, Part, Record

_ROWS = 3
_SAMPLE_WIDTH = 36
_READ = 2000
"""Records that are read at most for the samples: a row may hold many negatives."""
_COUNTED_BYTES = 64 << 20
"""The largest file whose rows are counted by reading it once more."""


def describe(part: Part, count_all: bool) -> Iterator[str]:
    """The lines of a part: what it is, its columns, and samples of its first three rows.

    Rows are counted where the source says how many there are, in files of up to 64 MiB, and with
    `count_all` in every file.
    """
    split = f", split {part.split}" if part.split else ""
    yield f"{part.name}: {part.what}, {_count(part, count_all)}{split}"
    if part.columns:
        read = ", ".join(f"{role} = {'+'.join(names)}" for role, names in part.columns.items())
        yield f"  columns    {read}"
    if part.unused:
        yield f"  not read   {', '.join(part.unused)}"
    for what, samples in _samples(part).items():
        yield f"  {what:<10} {' | '.join(samples)}"


def _count(part: Part, count_all: bool) -> str:
    count, path = part.count, Path(part.name)
    if count is None and (count_all or (path.is_file() and path.stat().st_size <= _COUNTED_BYTES)):
        skipped = SkippedLines()
        count = last = 0
        for number, _ in part.read(skipped):
            count, last = count + (number != last), number
        if skipped.count:
            return f"{count:,} rows and {skipped.count:,} that cannot be read"
    if count is not None:
        return f"{count:,} row{'s' * (count != 1)}"
    return f"{path.stat().st_size >> 20:,} MiB" if path.is_file() else "rows not counted"


def _samples(part: Part) -> dict[str, list[str]]:
    """document, query, label, negative -> the first of each in the first three rows."""
    samples: dict[str, dict[int, str]] = {}
    for number, record in islice(part.read(SkippedLines()), _READ):
        what, text = _shown(record)
        found = samples.setdefault(what, {})
        if number not in found and len(found) == _ROWS:
            break
        found.setdefault(number, _short(text))
    return {what: list(found.values()) for what, found in samples.items()}


def _shown(record: Record) -> tuple[str, str]:
    match record:
        case Chunk():
            return "passage", record.passage.text
        case Passage():
            return "document", record.joined(": ")
        case Query():
            return "query", record.text
        case Label():
            return "label", f"{record.query_id} {record.doc_id} {record.relevance}"
        case Negative():
            return "negative", f"{record.query_id} {record.doc_id}"
        case _:
            return "hit", f"{record.query_id} {record.doc_id} {record.rank}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SAMPLE_WIDTH else text[: _SAMPLE_WIDTH - 1] + "…"
