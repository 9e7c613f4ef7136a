"""Reads and writes FlagEmbedding's training rows: texts without ids, and optional scores of a
teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Query
from ance_cli.formats.jsonl import read_records, refuse
from ance_cli.formats.labels import Label
from ance_cli.interop.records import (
    Example,
    Head,
    Negative,
    Part,
    Record,
    Role,
    content_id,
    file_part,
)


def recognise(path: Path, head: Head) -> Part | None:
    """Recognises the fields of the first row."""
    if {"query", "pos"} <= head.fields():
        what = "FlagEmbedding rows (query, pos)"
        return file_part(path, Role.ROWS, what, rows, text_only=True)
    return None


def rows(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`{query, pos: [...], neg: [...], pos_scores: [...], neg_scores: [...]}`; scores optional.

    The id of a text is its hash, so that a passage in several rows is one document. The scores are
    those of a teacher.
    """
    for number, row in read_records(path, skipped):
        where = f"{path}:{number}"
        try:
            query = row.get("query")
            if not isinstance(query, str) or not query.strip():
                raise BadInput(f"{where}: 'query' should be a string that is not empty")
            positives, negatives = _texts(row, "pos", where), _texts(row, "neg", where)
            positive_scores = _scores(row, "pos_scores", len(positives), where)
            negative_scores = _scores(row, "neg_scores", len(negatives), where)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        for text in (*positives, *negatives):
            yield number, Passage(content_id(text), "", text)
        query_id = content_id(query)
        yield number, Query(query_id, query)
        for text in positives:
            yield number, Label(query_id, content_id(text), 1)
        for positive, positive_score in zip(positives, positive_scores, strict=True):
            for negative, score in zip(negatives, negative_scores, strict=True):
                both = score is not None and positive_score is not None
                yield number, Negative(
                    query_id, content_id(positive), content_id(negative), "neg",
                    score if both else None, positive_score if both else None,
                )  # fmt: skip


def _texts(row: dict[str, Any], field: str, where: str) -> list[str]:
    found = row.get(field)
    if found is None:
        found = []
    if not isinstance(found, list):
        raise BadInput(f"{where}: {field!r} should be a list, found {type(found).__name__}")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{where}: {field!r} should contain strings that are not empty")
    return found


def _scores(row: dict[str, Any], field: str, count: int, where: str) -> list[float | None]:
    found = row.get(field)
    if found is None or found == []:
        return [None] * count
    if not isinstance(found, list) or len(found) != count:
        raise BadInput(f"{where}: {field!r} should be a list of {count} scores, one per text")
    for score in found:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not math.isfinite(score):
            raise BadInput(f"{where}: {field!r} should contain finite numbers, found {score!r}")
    return [float(score) for score in found]


def row_of(example: Example, separator: str) -> dict[str, Any]:
    """The row of one pair, as `rows` reads it; with scores if the teacher scored every text."""
    row: dict[str, Any] = {
        "query": example.query.text,
        "pos": [example.positive.joined(separator)],
        "neg": [passage.joined(separator) for passage in example.negatives],
    }
    scores = [example.teacher_positive_score, *example.teacher_scores]
    if len(scores) == 1 + len(example.negatives) and None not in scores:
        row |= {"pos_scores": scores[:1], "neg_scores": scores[1:]}
    return row
