"""Tables as parts of an import: what the columns are, and the records of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import refuse
from ance_cli.interop.chunking import Chunker
from ance_cli.interop.columns import DOC_ID, POSITIVE, Shape, records_of, shape_of
from ance_cli.interop.records import Chunk, Head, Part, Record, Role, split_in
from ance_cli.interop.table_files import Table, open_table


@dataclass(frozen=True)
class TableReading:
    """How the caller wants tables to be read."""

    named: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """role -> columns, by `--columns`"""
    min_score: float | None = None
    """Lowest score of a positive; None: scores are labels"""
    chunker: Chunker | None = None
    """Cuts documents into passages; None: a document is one passage"""

    @property
    def names(self) -> frozenset[str]:
        """The columns that the caller named."""
        return frozenset(name for names in self.named.values() for name in names)


def recognise(
    path: Path, head: Head, reading: TableReading, role: Role | None = None
) -> Part | None:
    """The table as a part, if its columns say what it is; `role` is what the caller says it is."""
    table = open_table(path, head, reading.names)
    if table is None:
        return None
    shape = shape_of(table.columns, reading.named, path.name, role)
    if shape is None:
        return None
    return part_of(str(path), table, shape, reading, partial(hash_file, path), split_in(path.name))


def not_understood(name: str, columns: tuple[str, ...]) -> BadInput:
    """The error of a table whose columns have no known names."""
    return BadInput(
        f"{name}: no column is known as a query or a text; it has {', '.join(columns[:20])}",
        hint="name them, for instance --columns query=COLUMN,positive=COLUMN "
        "(roles: query, query_id, positive, negative, doc_id, score, title, text)",
    )


def part_of(
    name: str,
    table: Table,
    shape: Shape,
    reading: TableReading,
    fingerprint: partial[str],
    split: str | None,
) -> Part:
    """The part for a table of any source."""
    return Part(
        name,
        shape.role,
        f"{shape.what} ({table.form})",
        partial(_records, name, table, shape, reading),
        fingerprint,
        None if shape.role in (Role.DOCUMENTS, Role.QUERIES) else split,
        text_only=bool(shape.columns.get(POSITIVE)) and not shape.columns.get(DOC_ID),
        by_row=table.by_row,
        columns=shape.columns,
        unused=shape.unused,
        count=table.count,
        is_cut=shape.role is Role.DOCUMENTS and reading.chunker is not None,
    )


def _records(
    name: str, table: Table, shape: Shape, reading: TableReading, skipped: SkippedLines | None
) -> Iterator[tuple[int, Record]]:
    for number, row in table.read(skipped):
        where = f"{name}: row {number}" if table.by_row else f"{name}:{number}"
        try:
            if not isinstance(row, dict):
                raise BadInput(f"{where}: expected an object, found {type(row).__name__}")
            found: list[Record] = list(records_of(shape, row, where, reading.min_score))
            if shape.role is Role.DOCUMENTS and reading.chunker is not None:
                found = list(_cut(found, reading.chunker))
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        for record in found:
            yield number, record


def _cut(documents: Sequence[Record], chunker: Chunker) -> Iterator[Chunk]:
    for document in documents:
        assert isinstance(document, Passage), "a table of documents"
        for place, text in enumerate(chunker.cut(document.text), start=1):
            chunk_id = f"{document.doc_id}#{place}"
            yield Chunk(Passage(chunk_id, document.title, text), document.doc_id)
