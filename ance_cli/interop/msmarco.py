"""MS MARCO: `collection.tsv`, `msmarco-docs.tsv`, queries, labels, triples and runs, recognised by
their names in the release. The files have neither quotes nor headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Query, checked_id
from ance_cli.formats.labels import Label, read_labels
from ance_cli.formats.trec import read_hits
from ance_cli.interop import tables
from ance_cli.interop.records import Head, Negative, Part, Record, Role, content_id, file_part

SEPARATOR = "<sep>"
"""The separator of url, title and body in the training data of the released ANCE models."""

_TRIPLES = "triples"


def recognise_passages(path: Path, head: Head) -> Part | None:
    """The files of the passage ranking task."""
    name = path.name.lower()
    if name.startswith("collection"):
        return file_part(path, Role.DOCUMENTS, "MS MARCO passages (its name)", tables.documents)
    return _recognise_shared(path, head)


def recognise_documents(path: Path, head: Head, with_url: bool = False) -> Part | None:
    """The files of the document ranking task."""
    if path.name.lower().startswith("msmarco-docs"):
        read = partial(web_documents, with_url=with_url)
        return file_part(path, Role.DOCUMENTS, "MS MARCO documents (its name)", read)
    return _recognise_shared(path, head)


def _recognise_shared(path: Path, head: Head) -> Part | None:
    name, columns = path.name.lower(), len(head.columns)
    if re.match(r"queries\.|msmarco-.*-queries\.", name):
        return file_part(path, Role.QUERIES, "MS MARCO queries (its name)", tables.queries)
    if re.match(r"qrels\.|msmarco-.*-qrels\.|20\d\dqrels", name):
        return file_part(path, Role.LABELS, "MS MARCO labels (its name)", read_labels)
    if _TRIPLES in name and columns == 3:
        if any(" " in text for text in head.columns):
            return file_part(
                path, Role.ROWS, "MS MARCO triples of texts (its name, three texts)",
                triples_by_text, text_only=True,
            )  # fmt: skip
        return file_part(
            path, Role.TRIPLES, "MS MARCO triples of ids (its name, three ids)", triples_by_id
        )
    if "run" in name or "top1" in name:
        if columns == 3:
            what = "MS MARCO run (its name, three columns)"
            return file_part(path, Role.RUN, what, tables.ranked)
        if len(head.first.split()) == 6:
            return file_part(path, Role.RUN, "run (its name, six columns)", read_hits)
    return None


def web_documents(
    path: Path, skipped: SkippedLines | None, with_url: bool = False
) -> Iterator[tuple[int, Record]]:
    """`docid <tab> url <tab> title <tab> body`.

    The url is dropped. `with_url` makes the text `url<sep>title<sep>body` and the title empty, as
    in the training data of the released ANCE models.
    """

    def record(row: list[str], where: str) -> Passage:
        doc_id, url, title, body = row
        checked_id(doc_id, where)
        if with_url:
            return Passage(doc_id, "", SEPARATOR.join((url, title, body)))
        return Passage(doc_id, title, body)

    return tables.rows_of(path, ("docid", "url", "title", "body"), record, skipped)


def triples_by_id(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`query_id <tab> positive_id <tab> negative_id`."""

    def record(row: list[str], where: str) -> Negative:
        query_id, positive_id, negative_id = (checked_id(column, where) for column in row)
        return Negative(query_id, positive_id, negative_id, _TRIPLES)

    names = ("query_id", "positive_id", "negative_id")
    for number, negative in tables.rows_of(path, names, record, skipped):
        yield number, Label(negative.query_id, negative.positive_id, 1)
        yield number, negative


def triples_by_text(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`query <tab> positive <tab> negative` as texts; the id of a text is its hash."""

    def record(row: list[str], where: str) -> list[str]:
        if not all(text.strip() for text in row):
            raise BadInput(f"{where}: one of the three texts is empty")
        return row

    names = ("query", "positive", "negative")
    for number, (query, positive, negative) in tables.rows_of(path, names, record, skipped):
        query_id, positive_id, negative_id = map(content_id, (query, positive, negative))
        yield number, Passage(positive_id, "", positive)
        yield number, Passage(negative_id, "", negative)
        yield number, Query(query_id, query)
        yield number, Label(query_id, positive_id, 1)
        yield number, Negative(query_id, positive_id, negative_id, _TRIPLES)


def run_lines(query_id: str, doc_ids: Sequence[str]) -> bytes:
    """`query_id <tab> doc_id <tab> rank`, best first, as the official evaluation reads it."""
    lines = (f"{query_id}\t{doc_id}\t{rank}\n" for rank, doc_id in enumerate(doc_ids, start=1))
    return "".join(lines).encode()
