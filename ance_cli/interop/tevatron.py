"""Tevatron: v1 rows with their passages, v2 rows of ids with a corpus, all JSON lines; read and
written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import (
    ANSWER_FIELDS,
    Passage,
    Query,
    checked_id,
    parse_passage,
)
from ance_cli.formats.jsonl import read_records, refuse
from ance_cli.formats.labels import Label
from ance_cli.interop import tables
from ance_cli.interop.records import (
    Example,
    Head,
    Negative,
    Part,
    Record,
    Role,
    answers_metadata,
    file_part,
)


def recognise(path: Path, head: Head) -> Part | None:
    """Recognises the fields of the first row."""
    fields = head.fields()
    if "positive_passages" in fields:
        return file_part(path, Role.ROWS, "Tevatron v1 rows (positive_passages)", rows_with_texts)
    if "positive_document_ids" in fields:
        return file_part(path, Role.ROWS, "Tevatron v2 rows (positive_document_ids)", rows_of_ids)
    if "docid" in fields and "text" in fields:
        return file_part(path, Role.DOCUMENTS, "Tevatron corpus (docid)", tables.json_documents)
    if {"query_id", "query"} <= fields <= {"query_id", "query", *ANSWER_FIELDS, "metadata"}:
        return file_part(path, Role.QUERIES, "Tevatron queries (query_id)", tables.json_queries)
    return None


def rows_with_texts(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`{query_id, query, positive_passages: [{docid, title, text}], negative_passages: [...]}`."""
    for number, row in read_records(path, skipped):
        where = f"{path}:{number}"
        try:
            query = _query(row, "query", where)
            positives = _passages(row, "positive_passages", where)
            negatives = _passages(row, "negative_passages", where)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        for passage in (*positives, *negatives):
            yield number, passage
        yield number, query
        yield from _judged(
            number, query.query_id, [passage.doc_id for passage in positives],
            [passage.doc_id for passage in negatives], "negative_passages",
        )  # fmt: skip


def rows_of_ids(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`{query_id, query_text, positive_document_ids: [...], negative_document_ids: [...]}`."""
    for number, row in read_records(path, skipped):
        where = f"{path}:{number}"
        try:
            query = _query(row, "query_text", where)
            positives = _ids(row, "positive_document_ids", where)
            negatives = _ids(row, "negative_document_ids", where)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, query
        yield from _judged(number, query.query_id, positives, negatives, "negative_document_ids")


def _judged(
    number: int, query_id: str, positives: list[str], negatives: list[str], source: str
) -> Iterator[tuple[int, Record]]:
    for positive_id in positives:
        yield number, Label(query_id, positive_id, 1)
    for positive_id in positives:
        for doc_id in negatives:
            yield number, Negative(query_id, positive_id, doc_id, source)


def _query(row: dict[str, Any], field: str, where: str) -> Query:
    query_id, text = row.get("query_id"), row.get(field)
    if isinstance(query_id, int) and not isinstance(query_id, bool):
        query_id = str(query_id)
    if not isinstance(query_id, str):
        raise BadInput(f"{where}: no 'query_id'; the row has {', '.join(row) or 'no fields'}")
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"{where}: {field!r} should be a string that is not empty")
    answers = answers_metadata(row.get("answers"), where)
    return Query(checked_id(query_id, where), text, answers)


def _listed(row: dict[str, Any], field: str, where: str) -> list[Any]:
    found = row.get(field)
    if found is None:
        return []
    if not isinstance(found, list):
        raise BadInput(f"{where}: {field!r} should be a list, found {type(found).__name__}")
    return found


def _passages(row: dict[str, Any], field: str, where: str) -> list[Passage]:
    found = _listed(row, field, where)
    for passage in found:
        if not isinstance(passage, dict):
            raise BadInput(f"{where}: {field!r} should contain objects with docid, title and text")
    return [parse_passage(passage, f"{where}: {field}") for passage in found]


def _ids(row: dict[str, Any], field: str, where: str) -> list[str]:
    found = _listed(row, field, where)
    for value in found:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise BadInput(f"{where}: {field!r} should contain ids, found {type(value).__name__}")
    return [checked_id(str(value), where) for value in found]


# -------------------------------------------------------------------- writing


def row_with_texts(example: Example) -> dict[str, Any]:
    """The v1 row of one pair, as `rows_with_texts` reads it."""
    return {
        "query_id": example.query.query_id,
        "query": example.query.text,
        "positive_passages": [_titled(example.positive)],
        "negative_passages": [_titled(passage) for passage in example.negatives],
    }


def _titled(passage: Passage) -> dict[str, str]:
    return {"docid": passage.doc_id, "title": passage.title, "text": passage.text}


def row_of_ids(query: Query, positive_id: str, negative_ids: list[str]) -> dict[str, Any]:
    """The v2 row of one pair, as `rows_of_ids` reads it."""
    return {
        "query_id": query.query_id,
        "query_text": query.text,
        "positive_document_ids": [positive_id],
        "negative_document_ids": negative_ids,
    }


def corpus_record(passage: Passage, separator: str) -> dict[str, str]:
    """A document of a v2 corpus.

    The title is part of the text: Tevatron's v2 training takes `text` alone, and would ignore a
    title without a word.
    """
    return {"docid": passage.doc_id, "text": passage.joined(separator)}
