"""Files of rows with named columns: CSV, TSV, Parquet, Arrow, JSON lists and JSON lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, system_failure
from ance_cli.formats.jsonl import DAMAGE, damaged, open_input, read_records
from ance_cli.interop.delimited import quoted_rows, tab_rows
from ance_cli.interop.records import Head

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]

_ENDING = re.compile(
    r"\.(csv|tsv|tab|txt|parquet|arrow|feather|jsonl|ndjson|json)(?:\.(?:gz|zst))?$"
)
_BATCH = 1024


@dataclass(frozen=True)
class Table:
    """A table and how to read it."""

    form: str
    """For people: `CSV`, `Parquet`, ..."""
    columns: tuple[str, ...]
    """The names of the columns; for a delimited file without a header its cells `1`, `2`, ..."""
    read: Callable[[SkippedLines | None], Rows]
    """Yields (line or row number from 1, row)."""
    count: int | None = None
    """Rows, if the file says so."""
    by_row: bool = False
    """Whether the numbers are those of rows, because the file has no lines."""
    has_header: bool = True


def open_table(path: Path, head: Head, named: frozenset[str] = frozenset()) -> Table | None:
    """The table in a file; None if its name has no ending of a table or its start is none.

    `named` are names that the caller gives to columns: a first row with one of them is a header.
    Raises `BadInput` for a damaged Parquet or Arrow file.
    """
    ending = _ENDING.search(path.name.lower())
    kind = ending[1] if ending else ""
    if kind == "parquet":
        return _parquet(path)
    if kind in ("arrow", "feather"):
        return _arrow(path)
    if kind in ("csv", "tsv", "tab", "txt"):
        return _delimited(path, head, kind, named)
    if kind and head.first[:1] == "{":
        columns = tuple(_first_row(read_records(path)))
        return Table("JSON lines", columns, lambda skipped: read_records(path, skipped))
    if kind and head.first.lstrip()[:1] == "[":
        rows = json_rows(path)
        return Table("JSON list", tuple(_first_row(rows)), lambda _: json_rows(path), by_row=True)
    return None


def _first_row(rows: Iterator[tuple[int, Any]]) -> Row:
    try:
        _, row = next(rows)
    except (StopIteration, BadInput):  # reading the whole file reports it
        return {}
    return row if isinstance(row, dict) else {}


# ---------------------------------------------------------------- delimited text


def _delimited(path: Path, head: Head, kind: str, named: frozenset[str]) -> Table | None:
    delimiter = _delimiter(head.first, kind)
    names = next(csv.reader([head.first], delimiter=delimiter), []) if delimiter else []
    if len(names) < 2:
        return None
    names = [name.strip() or f"column {place}" for place, name in enumerate(names, start=1)]
    is_unique = len(set(names)) == len(names)
    has_header = is_unique and (not named.isdisjoint(names) or all(map(_is_name, names)))
    columns = names if has_header else [str(place + 1) for place in range(len(names))]

    def read(skipped: SkippedLines | None) -> Rows:
        rows = (
            tab_rows(path, columns, skipped)
            if delimiter == "\t"
            else quoted_rows(path, delimiter, len(columns), skipped)
        )
        is_first = has_header
        for number, cells in rows:
            if not is_first:
                yield number, dict(zip(columns, cells, strict=True))
            is_first = False

    form = {"\t": "TSV", ",": "CSV"}.get(delimiter, f"CSV with {delimiter}")
    return Table(form, tuple(columns), read, has_header=has_header)


def _is_name(cell: str) -> bool:
    """Whether a cell of the first row can be the name of a column: one or two short words."""
    return re.fullmatch(r"[A-Za-z_][\w.-]*(?: [\w-]+)?", cell) is not None and len(cell) <= 32


def _delimiter(line: str, kind: str) -> str:
    """The separator of the first line; "" if it has none."""
    if kind in ("tsv", "tab", "txt"):
        return "\t" if "\t" in line else ""
    counts = {each: line.count(each) for each in (",", ";", "\t", "|")}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else ""


# ---------------------------------------------------------------- JSON


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The members of a file that is one JSON list, one at a time, numbered from 1."""
    import ijson

    number = 0
    with open_input(path) as handle:
        try:
            for number, row in enumerate(ijson.items(handle, "item", use_float=True), start=1):
                yield number, row
        except DAMAGE as error:
            raise damaged(f"{path}: row {number + 1}", error) from error
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"{path}: row {number + 1}: not valid JSON ({reason})",
                hint="download or unpack the file again; the rows before this one are valid",
            ) from error


# ---------------------------------------------------------------- Parquet and Arrow


@contextmanager
def _arrow_errors(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield pa
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="check the path") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and system_failure(error):
            raise  # the disk's fault, not the file's
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path}: cannot be read as Parquet or Arrow ({reason})",
            hint="download the file again",
        ) from error


def _parquet(path: Path) -> Table:
    with _arrow_errors(path):
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            columns, count = tuple(file.schema_arrow.names), file.metadata.num_rows

    def read(skipped: SkippedLines | None) -> Rows:
        with _arrow_errors(path), pq.ParquetFile(path) as file:
            yield from _rows_of(file.iter_batches(_BATCH))

    return Table("Parquet", columns, read, count, by_row=True)


def _arrow(path: Path) -> Table:
    """Arrow's file form (also Feather's second version), or its streaming form."""

    @contextmanager
    def opened() -> Iterator[Any]:
        with _arrow_errors(path) as pa, pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source) as reader:
                yield reader

    with opened() as reader:
        columns = tuple(reader.schema.names)

    def read(skipped: SkippedLines | None) -> Rows:
        with opened() as reader:
            batches = (
                (reader.get_batch(place) for place in range(reader.num_record_batches))
                if hasattr(reader, "get_batch")
                else reader
            )
            yield from _rows_of(batches)

    return Table("Arrow", columns, read, by_row=True)


def _rows_of(batches: Iterator[Any]) -> Rows:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for row in batch.slice(start, _BATCH).to_pylist():
                number += 1
                yield number, row
