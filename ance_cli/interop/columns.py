"""What the columns of a table mean: which holds queries, positives, negatives, ids, scores.

The names that people use are known; `--columns query=question,positive=answer` names others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import ANSWER_FIELDS, Passage, Query, checked_id
from ance_cli.formats.labels import Label
from ance_cli.interop.records import (
    Negative,
    Record,
    Role,
    answers_metadata,
    content_id,
    text_or_number,
)

QUERY, QUERY_ID, POSITIVE, NEGATIVE = "query", "query_id", "positive", "negative"
DOC_ID, NEGATIVE_ID, SCORE, TITLE, TEXT = "doc_id", "negative_id", "score", "title", "text"
ANSWERS, METADATA = "answers", "metadata"

_KNOWN: dict[str, tuple[str, ...]] = {
    QUERY: ("query", "question", "anchor", "queries", "query_text", "question_text",
            "search_query", "sentence1", "sentence_a"),
    QUERY_ID: ("query_id", "qid", "queryid", "question_id"),
    POSITIVE: ("positive", "positives", "pos", "positive_text", "context", "passage", "document",
               "text", "chunk", "answer", "response", "sentence2", "sentence_b"),
    NEGATIVE: ("negative", "negatives", "neg", "negs", "hard_negative", "hard_negatives",
               "negative_text", "negative_texts"),
    DOC_ID: ("doc_id", "docid", "document_id", "passage_id", "corpus_id", "pid", "positive_id",
             "positive_ids", "chunk_id", "article_id", "doc"),
    NEGATIVE_ID: ("negative_id", "negative_ids", "neg_id"),
    SCORE: ("score", "label", "relevance", "rel", "similarity", "grade"),
    TITLE: ("title", "heading", "name", "subject"),
    TEXT: ("text", "body", "content", "contents", "passage", "document", "chunk", "page_content",
           "abstract"),
    ANSWERS: ANSWER_FIELDS,
    METADATA: ("metadata",),
}  # fmt: skip
"""Role -> names of its column, the best one first. Case does not matter, `-` and blanks are `_`."""

_RECORD_ID = ("id", "_id", *_KNOWN[DOC_ID])
_NUMBERED = re.compile(r"((?:hard_)?neg(?:ative)?)_?\d+")
_QUERIES_FILE = re.compile(r"(queries|questions|topics)\b|.*[._-](queries|questions)\b")


def parse_columns(text: str | None) -> dict[str, list[str]]:
    """`query=question,positive=answer` -> role -> columns; a role may be named repeatedly."""
    named: dict[str, list[str]] = {}
    for part in filter(None, (text or "").split(",")):
        role, equals, column = (each.strip() for each in part.partition("="))
        if role not in _KNOWN or not equals or not column:
            raise UsageProblem(
                f"--columns {part.strip()!r}: expected ROLE=COLUMN",
                hint=f"the roles are {', '.join(_KNOWN)}; for instance "
                "--columns query=question,positive=answer",
            )
        named.setdefault(role, []).append(column)
    return named


def _key(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


@dataclass(frozen=True)
class Shape:
    """What the rows of a table are, and the columns that are read."""

    role: Role
    what: str
    """For people: `pairs of query and positive`."""
    columns: Mapping[str, Sequence[str]]
    """role -> its columns"""
    unused: Sequence[str]

    def of(self, role: str) -> str | None:
        """The only column of a role; None without one."""
        return next(iter(self.columns.get(role, ())), None)


def shape_of(
    columns: Sequence[str],
    named: Mapping[str, Sequence[str]],
    file_name: str = "",
    forced: Role | None = None,
) -> Shape | None:
    """What a table is, by the names of its columns; None if no role of them is known.

    `named` are the caller's columns by role, of which a table may have some; `forced` is the role
    that the caller gives to the file.
    """
    given = {
        role: [each for each in names if each in columns]
        for role, names in named.items()
        if any(each in columns for each in names)
    }
    taken = {each for names in given.values() for each in names}
    free = {_key(each): each for each in reversed(columns) if each not in taken}
    found = {
        role: given.get(role) or [free[name] for name in names if name in free][:1]
        for role, names in _KNOWN.items()
    }
    record_id = next((free[name] for name in _RECORD_ID if name in free), None)
    chosen = _chosen(found, given, free, record_id, file_name.lower(), forced)
    if chosen is None:
        return None
    role, what, used = chosen
    used = {name: names for name, names in used.items() if names}
    read = {each for names in used.values() for each in names}
    return Shape(role, what, used, [each for each in columns if each not in read])


def _chosen(
    found: dict[str, list[str]],
    given: Mapping[str, list[str]],
    free: Mapping[str, str],
    record_id: str | None,
    file_name: str,
    forced: Role | None,
) -> tuple[Role, str, dict[str, list[str]]] | None:
    own_id = [record_id] if record_id else []
    is_queries = forced is Role.QUERIES or (
        forced is None and _QUERIES_FILE.match(file_name) is not None
    )
    query, text = found[QUERY], found[TEXT]
    if is_queries and (query or text) and not found[DOC_ID]:
        ids = found[QUERY_ID] or own_id
        answers = found[ANSWERS]
        if not (query and _without(found[POSITIVE], answers, text)):
            used = {QUERY: query or text, QUERY_ID: ids, ANSWERS: answers}
            return Role.QUERIES, "queries", {**used, METADATA: found[METADATA]}
    if forced is Role.DOCUMENTS or (not query and text and not found[QUERY_ID]):
        if not text:
            return None
        doc_id = given.get(DOC_ID) or own_id
        return Role.DOCUMENTS, "documents", {DOC_ID: doc_id, TITLE: found[TITLE], TEXT: text}
    if query:
        return _rows(found, given, free, own_id)
    if found[QUERY_ID] and found[DOC_ID]:
        used = {name: found[name] for name in (QUERY_ID, DOC_ID, SCORE)}
        return Role.LABELS, "labels", used
    return None


def _without(columns: list[str], *others: list[str]) -> list[str]:
    return [each for each in columns if not any(each in other for other in others)]


def _rows(
    found: dict[str, list[str]],
    given: Mapping[str, list[str]],
    free: Mapping[str, str],
    own_id: list[str],
) -> tuple[Role, str, dict[str, list[str]]] | None:
    """Rows with a query: pairs with texts, pairs with ids, or queries alone."""
    numbered = [column for name, column in reversed([*free.items()]) if _NUMBERED.fullmatch(name)]
    negatives = given.get(NEGATIVE) or [*found[NEGATIVE], *numbered]
    positive, doc_id = found[POSITIVE], found[DOC_ID]
    used = {QUERY: found[QUERY], QUERY_ID: found[QUERY_ID], DOC_ID: doc_id, SCORE: found[SCORE]}
    if not positive and not doc_id:
        return Role.QUERIES, "queries", {
            QUERY: found[QUERY], QUERY_ID: found[QUERY_ID] or own_id, ANSWERS: found[ANSWERS],
            METADATA: found[METADATA],
        }  # fmt: skip
    if not positive:
        used |= {NEGATIVE_ID: found[NEGATIVE_ID]}
        return Role.ROWS, "pairs of a query and a document id", used
    used |= {POSITIVE: positive, NEGATIVE: negatives}
    used |= {ANSWERS: _without(found[ANSWERS], positive)}
    if not negatives:  # a title on positives alone would give them away
        used |= {TITLE: found[TITLE]}
    what = "pairs of a query and a positive"
    if negatives:
        what = "rows of a query, a positive and negatives"
    elif found[SCORE]:
        what = "scored pairs of a query and a passage"
    return Role.ROWS, what, used


# -------------------------------------------------------------------- rows into records


def records_of(
    shape: Shape, row: Mapping[str, Any], where: str, min_score: float | None
) -> Iterator[Record]:
    """The records of one row; `BadInput` begins with `where`."""
    if shape.role is Role.DOCUMENTS:
        yield _document(shape, row, where)
    elif shape.role is Role.QUERIES:
        yield _query(shape, row, where)
    elif shape.role is Role.LABELS:
        query_id = _id(_value(shape, row, QUERY_ID), where, "query id")
        doc_id = _id(_value(shape, row, DOC_ID), where, "document id")
        yield Label(query_id, doc_id, _grade(shape, row, where, min_score))
    else:
        yield from _pair(shape, row, where, min_score)


def _document(shape: Shape, row: Mapping[str, Any], where: str) -> Passage:
    text = text_or_number(_value(shape, row, TEXT), f"{where}: {shape.of(TEXT)!r}")
    title = text_or_number(_value(shape, row, TITLE), f"{where}: {shape.of(TITLE)!r}")
    if not text.strip() and not title.strip():
        raise BadInput(f"{where}: the document is empty")
    if shape.of(DOC_ID) is None:
        return Passage(content_id(title, text), title, text)
    return Passage(_id(_value(shape, row, DOC_ID), where, "document id"), title, text)


def _query(shape: Shape, row: Mapping[str, Any], where: str) -> Query:
    text = text_or_number(_value(shape, row, QUERY), f"{where}: {shape.of(QUERY)!r}")
    if not text.strip():
        raise BadInput(f"{where}: {shape.of(QUERY)!r} is empty")
    has_id = shape.of(QUERY_ID) is not None
    query_id = _id(_value(shape, row, QUERY_ID), where, "query id") if has_id else content_id(text)
    own = _value(shape, row, METADATA)
    metadata = dict(own) if isinstance(own, dict) else {}
    metadata |= answers_metadata(_value(shape, row, ANSWERS), where) or {}
    return Query(query_id, text, metadata or None)


def _pair(
    shape: Shape, row: Mapping[str, Any], where: str, min_score: float | None
) -> Iterator[Record]:
    query = _query(shape, row, where)
    grade = _grade(shape, row, where, min_score)
    title = text_or_number(_value(shape, row, TITLE), f"{where}: {shape.of(TITLE)!r}")
    ids = [_id(each, where, "document id") for each in _listed(_value(shape, row, DOC_ID))]
    positives = _texts(shape, row, POSITIVE, where)
    if shape.of(POSITIVE) is None:
        if not ids:
            raise BadInput(f"{where}: {shape.of(DOC_ID)!r} is empty")
        doc_ids = ids
    else:
        if not positives:
            raise BadInput(f"{where}: {shape.of(POSITIVE)!r} is empty")
        if ids and len(ids) != len(positives):
            raise BadInput(
                f"{where}: {shape.of(DOC_ID)!r} has {len(ids)} ids for {len(positives)} texts"
            )
        doc_ids = ids or [content_id(title, text) for text in positives]
        for doc_id, text in zip(doc_ids, positives, strict=True):
            yield Passage(doc_id, title, text)
    against = [
        (content_id("", text), column)
        for column in shape.columns.get(NEGATIVE, ())
        for text in _texts_in(row, column, where)
    ]
    for column in shape.columns.get(NEGATIVE, ()):
        for text in _texts_in(row, column, where):
            yield Passage(content_id("", text), "", text)
    for column in shape.columns.get(NEGATIVE_ID, ()):
        against += [(_id(each, where, column), column) for each in _listed(row.get(column))]
    yield query
    for doc_id in dict.fromkeys(doc_ids):
        yield Label(query.query_id, doc_id, grade)
    for doc_id in dict.fromkeys(doc_ids):
        for negative_id, column in against:
            yield Negative(query.query_id, doc_id, negative_id, column)


def _value(shape: Shape, row: Mapping[str, Any], role: str) -> Any:
    column = shape.of(role)
    return None if column is None else row.get(column)


def _listed(value: Any) -> list[Any]:
    """A list, a single value as a list, or nothing."""
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if each is not None and each != ""]


def _texts(shape: Shape, row: Mapping[str, Any], role: str, where: str) -> list[str]:
    column = shape.of(role)
    return [] if column is None else _texts_in(row, column, where)


def _texts_in(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    texts = [text_or_number(each, f"{where}: {column!r}") for each in _listed(row.get(column))]
    return [text for text in texts if text.strip()]


def as_id(value: str) -> str:
    """An id without white space, which columns of text files could not hold: `_` stands for it."""
    return "_".join(value.split())


def _id(value: Any, where: str, what: str) -> str:
    text = as_id(text_or_number(value, f"{where}: the {what}"))
    if not text:
        raise BadInput(f"{where}: the {what} is empty")
    return checked_id(text, where)


def _grade(shape: Shape, row: Mapping[str, Any], where: str, min_score: float | None) -> int:
    """The label of a pair: 1 without a score, a whole number as it is, else by `min_score`."""
    column = shape.of(SCORE)
    if column is None:
        return 1
    value = row.get(column)
    try:
        score = float("nan") if isinstance(value, bool | None) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadInput(f"{where}: {column!r} should be a number, found {str(value)[:40]!r}")
    if min_score is not None:
        return int(score >= min_score)
    if score != int(score) or abs(score) >= 2**31:
        raise UsageProblem(
            f"{where}: {column!r} is {score:g}, and labels are whole numbers",
            hint="say from which score on a passage is a positive: --min-score 0.7",
        )
    return int(score)
