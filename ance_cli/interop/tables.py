"""Readers for files of tab-separated columns, as MS MARCO and TREC release them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import (
    ANSWER_FIELDS,
    Passage,
    Query,
    checked_id,
    parse_passage,
    parse_query,
)
from ance_cli.formats.jsonl import read_lines, read_records, refuse
from ance_cli.formats.labels import names_ids
from ance_cli.formats.trec import Hit
from ance_cli.interop.delimited import text_of
from ance_cli.interop.records import Record, answers_metadata

T = TypeVar("T")


def rows_of(
    path: Path,
    names: Sequence[str],
    record: Callable[[list[str], str], T],
    skipped: SkippedLines | None,
) -> Iterator[tuple[int, T]]:
    """Yield a record for each row of a file without quotes, with the line's number; a header
    is left out.

    Each row must have as many columns as `names`. `record` takes the columns and `file:line`.
    """
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            columns = text_of(line, where).split("\t")
            if number == 1 and names_ids(*columns[:2]):
                continue
            if len(columns) != len(names):
                raise BadInput(
                    f"{where}: expected {len(names)} columns separated by tabs "
                    f"({', '.join(names)}), found {len(columns)}",
                    hint=f"look at it with: sed -n {number}p {path}; "
                    "skip bad lines with --skip-bad",
                )
            found = record(columns, where)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, found


def json_documents(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """Documents in JSON lines."""
    return _json_rows(path, parse_passage, skipped)


def json_queries(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """Queries in JSON lines, with their answers in the metadata."""

    def parse(fields: dict[str, object], where: str) -> Query:
        query = parse_query(fields, where)
        own = query.metadata if isinstance(query.metadata, dict) else {}
        places = ({name: fields.get(name) for name in ANSWER_FIELDS}, own)
        values = [place[name] for place in places for name in ANSWER_FIELDS if place.get(name)]
        if not values:
            return query
        rest = {name: value for name, value in own.items() if name not in ANSWER_FIELDS}
        answers = answers_metadata(values[0], where)
        return query._replace(metadata={**rest, **(answers or {})})

    return _json_rows(path, parse, skipped)


def _json_rows(
    path: Path, parse: Callable[[dict[str, object], str], Record], skipped: SkippedLines | None
) -> Iterator[tuple[int, Record]]:
    for number, fields in read_records(path, skipped):
        try:
            found = parse(fields, f"{path}:{number}")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, found


def documents(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`id <tab> text`."""
    return rows_of(
        path, ("id", "text"), lambda row, where: Passage(checked_id(row[0], where), "", row[1]),
        skipped,
    )  # fmt: skip


def titled_documents(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`id <tab> title <tab> text`."""
    return rows_of(
        path, ("id", "title", "text"),
        lambda row, where: Passage(checked_id(row[0], where), row[1], row[2]), skipped,
    )  # fmt: skip


def queries(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`id <tab> text`; an empty text is an error."""

    def record(row: list[str], where: str) -> Query:
        query_id = checked_id(row[0], where)
        if not row[1].strip():
            raise BadInput(f"{where}: query {query_id!r} is empty")
        return Query(query_id, row[1])

    return rows_of(path, ("id", "text"), record, skipped)


def ranked(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`query_id <tab> doc_id <tab> rank`, as in MS MARCO's runs. The score is the negated rank."""

    def record(row: list[str], where: str) -> Hit:
        query_id, doc_id, rank = row
        if not re.fullmatch(r"0*[1-9]\d{0,9}", rank, re.ASCII):
            raise BadInput(
                f"{where}: the rank should be a whole number from 1, found {rank[:40]!r}"
            )
        return Hit(checked_id(query_id, where), checked_id(doc_id, where), -float(rank), rank)

    return rows_of(path, ("query_id", "doc_id", "rank"), record, skipped)
