"""TREC: topics (`id <tab> text`, or `<top>` with `<num>` and `<title>`), qrels, runs, and documents
as tab-separated columns or JSON lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Query, checked_id
from ance_cli.formats.jsonl import read_lines, refuse
from ance_cli.formats.labels import read_labels
from ance_cli.formats.trec import read_hits
from ance_cli.interop import tables
from ance_cli.interop.delimited import text_of
from ance_cli.interop.records import Head, Part, Record, Role, file_part

_DOCUMENTS = re.compile(r"(corpus|collection|documents?|docs|passages)\b")
_TAG = re.compile(r"\s*<(/?\w+)>(.*)", re.DOTALL)
_LABEL = {"num": "Number:", "title": "Topic:"}
"""Labels that some years write between the tag and its value."""


def recognise(path: Path, head: Head) -> Part | None:
    """Recognises the columns of the first line.

    Two tab-separated columns are topics, unless the file's name says that they are documents.
    """
    words, columns = head.first.split(), head.columns
    if head.first.lstrip()[:5].lower() == "<top>":
        return file_part(path, Role.QUERIES, "TREC topics (<top>)", topics)
    if len(words) == 6 and words[3].isdecimal() and _is_number(words[4]):
        return file_part(path, Role.RUN, "TREC run (six columns)", read_hits)
    if len(words) == 4 and re.fullmatch(r"-?\d+", words[3]):
        return file_part(path, Role.LABELS, "TREC labels (four columns)", read_labels)
    return as_documents(path, head) if _DOCUMENTS.match(path.name.lower()) else (
        file_part(path, Role.QUERIES, "topics (two columns)", tables.queries)
        if len(columns) == 2
        else None
    )  # fmt: skip


def as_documents(path: Path, head: Head) -> Part | None:
    """The file as documents: JSON lines, `id text` or `id title text`."""
    if head.first[:1] == "{":
        return file_part(path, Role.DOCUMENTS, "documents (JSON lines)", tables.json_documents)
    readers = {2: tables.documents, 3: tables.titled_documents}
    read = readers.get(len(head.columns))
    what = f"documents ({len(head.columns)} columns)"
    return file_part(path, Role.DOCUMENTS, what, read) if read else None


def as_queries(path: Path, head: Head) -> Part | None:
    """The file as queries: JSON lines, `<top>`, or `id text`."""
    if head.first[:1] == "{":
        return file_part(path, Role.QUERIES, "queries (JSON lines)", tables.json_queries)
    if head.first.lstrip()[:5].lower() == "<top>":
        return file_part(path, Role.QUERIES, "TREC topics (<top>)", topics)
    return file_part(path, Role.QUERIES, "queries (two columns)", tables.queries)


def as_labels(path: Path, head: Head) -> Part | None:
    """The file as labels, in three columns or four."""
    return file_part(path, Role.LABELS, "labels", read_labels)


def topics(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """The classic format: `<num>` is the id, `<title>` the query; other fields are dropped.

    A value can continue on the lines below its tag.
    """
    fields: dict[str, list[str]] = {}
    started, open_tag = 0, ""
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            text = text_of(line, where)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        tag = _TAG.match(text)
        name = tag[1].lower() if tag else ""
        if name == "top":
            if started:
                refuse(_unfinished(path, started), skipped)
            fields, started, open_tag = {}, number, ""
        elif name == "/top":
            try:
                query = _topic(fields, f"{path}:{started or number}")
            except BadInput as problem:
                refuse(problem, skipped)
            else:
                yield started, query
            started = 0
        elif tag:
            open_tag = name
            fields.setdefault(open_tag, []).append(tag[2])
        elif open_tag:
            fields[open_tag].append(text)
    if started:
        refuse(_unfinished(path, started), skipped)


def _unfinished(path: Path, started: int) -> BadInput:
    return BadInput(f"{path}:{started}: the topic has no </top>")


def _topic(fields: dict[str, list[str]], where: str) -> Query:
    values = {}
    for name, label in _LABEL.items():
        value = " ".join(" ".join(fields.get(name, [])).split())
        value = value.removesuffix(f"</{name}>").strip().removeprefix(label).strip()
        if not value:
            raise BadInput(
                f"{where}: the topic has no <{name}>",
                hint="a topic contains <num> Number: 301 and <title> words of the query",
            )
        values[name] = value
    return Query(checked_id(values["num"], where), values["title"])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
