"""Negatives as JSON lines, one line for each pair of a query and a positive.

`{"query_id", "positive_id", "negative_ids": [...], "negative_scores": [...], "negative_ranks":
[...], "positive_score", "sources": [...]}`. A score or rank (from 1) is null if the source has
none. With a cross-encoder as teacher, a line also has `teacher_scores` (logits in the order of
`negative_ids`, null for a negative without a score) and `teacher_positive_score`. Training needs
only `query_id`, `positive_id` and `negative_ids`; distillation also reads the teacher's fields.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.atomic import place_of
from ance_cli.formats.jsonl import read_records, refuse
from ance_cli.formats.manifest import check_sidecar


def audit_name(negatives: Path) -> Path:
    """The path of the audit of a negatives file: `ann.audit.json` for `ann.jsonl`."""
    return _companion(negatives, ".audit.json")


def candidates_name(negatives: Path) -> Path:
    """The path of the candidates of a negatives file: `ann.candidates` for `ann.jsonl`."""
    return _companion(negatives, ".candidates")


def _companion(negatives: Path, ending: str) -> Path:
    negatives = place_of(negatives)
    stem = negatives.name
    for suffix in (".gz", ".zst", ".jsonl"):
        stem = stem.removesuffix(suffix)
    return negatives.with_name(stem + ending)


@dataclass(frozen=True)
class Texts:
    """Texts that are written next to the ids: query_id -> text, and doc_id -> title and text."""

    queries: dict[str, str]
    passages: dict[str, str]


@dataclass(slots=True)
class PairNegatives:
    """One line: the negatives of one (query, positive) pair.

    `teacher_scores` is as long as `negative_ids`, or empty if no teacher scored the pair.
    """

    query_id: str
    positive_id: str
    negative_ids: list[str]
    negative_scores: list[float | None] = field(default_factory=list)
    negative_ranks: list[int | None] = field(default_factory=list)
    positive_score: float | None = None
    sources: list[str] = field(default_factory=list)
    teacher_scores: list[float | None] = field(default_factory=list)
    teacher_positive_score: float | None = None

    def to_line(self, texts: Texts | None = None) -> bytes:
        """The JSON line; `texts` adds the texts of the query and the documents for people."""
        # not `asdict`, which copies every list deeply: a quarter of the time of a small mining run
        record = {name: getattr(self, name) for name in self.__slots__}
        if not self.teacher_scores and self.teacher_positive_score is None:
            del record["teacher_scores"], record["teacher_positive_score"]
        if texts is not None:
            record["query"] = texts.queries[self.query_id]
            record["positive"] = texts.passages[self.positive_id]
            record["negatives"] = [texts.passages[doc_id] for doc_id in self.negative_ids]
        return orjson.dumps(record) + b"\n"


def read_negatives(
    path: Path,
    known_queries: Container[str],
    known_docs: Container[str],
    positives: dict[str, list[str]] | None = None,
    skipped: SkippedLines | None = None,
) -> Iterator[PairNegatives]:
    """Yield the lines of a negatives file, checked against the dataset.

    Raises `BadInput` for an unknown id, a pair that occurs twice, a `positive_id` that is not a
    positive of the query in the labels, a negative that is one and, after the last line, a file
    that differs from its manifest.
    """
    lines: dict[tuple[str, str], int] = {}
    relevant: dict[str, frozenset[str]] = {}
    for number, record in read_records(path, skipped):
        where = f"{path}:{number}"
        try:
            pair = parse_pair(record, where)
            _check_ids(pair, known_queries, known_docs, where)
            if positives is not None:
                if pair.query_id not in relevant:
                    relevant[pair.query_id] = frozenset(positives.get(pair.query_id, ()))
                _check_labels(pair, relevant[pair.query_id], where)
            key = (pair.query_id, pair.positive_id)
            if key in lines:
                raise BadInput(f"{where}: the same pair is also on line {lines[key]}")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        lines[key] = number
        yield pair
    if not lines:
        raise BadInput(f"{path}: the file has no negatives", hint=_MAKE_NEGATIVES)
    check_sidecar(path)


_MAKE_NEGATIVES = "make negatives with `ance bm25-negatives` or `ance mine`"


def _check_ids(
    pair: PairNegatives, known_queries: Container[str], known_docs: Container[str], where: str
) -> None:
    if pair.query_id not in known_queries:
        raise BadInput(f"{where}: query {pair.query_id!r} is not among the queries")
    for doc_id in (pair.positive_id, *pair.negative_ids):
        if doc_id not in known_docs:
            raise BadInput(
                f"{where}: document {doc_id!r} is not in the corpus",
                hint="train on the dataset that the negatives were mined from",
            )


def _check_labels(pair: PairNegatives, relevant: frozenset[str], where: str) -> None:
    """Compare a pair with the positives of its query."""
    if pair.positive_id not in relevant:
        raise BadInput(
            f"{where}: {pair.positive_id!r} is not a positive of query {pair.query_id!r} in the "
            "labels",
            hint="name the split that the negatives were mined for with --split",
        )
    if wrong := relevant.intersection(pair.negative_ids):
        raise BadInput(
            f"{where}: {min(wrong)!r} is a positive of query {pair.query_id!r} and is among its "
            "negatives",
            hint="mine again with `ance mine`, which removes every known positive",
        )


def parse_pair(record: dict[str, object], where: str) -> PairNegatives:
    """Parse one line of a negatives file; `BadInput` if a field is missing or of another type."""
    query_id, positive_id = _id(record.get("query_id")), _id(record.get("positive_id"))
    negative_ids = record.get("negative_ids")
    if isinstance(negative_ids, list):
        negative_ids = [_id(name) for name in negative_ids]
    if not isinstance(query_id, str) or not isinstance(positive_id, str):
        raise BadInput(
            f"{where}: 'query_id' and 'positive_id' should be strings; "
            f"the record has {', '.join(record) or 'no fields'}",
            hint=_MAKE_NEGATIVES,
        )
    if not isinstance(negative_ids, list) or not all(isinstance(x, str) for x in negative_ids):
        raise BadInput(f"{where}: 'negative_ids' should be a list of strings", hint=_MAKE_NEGATIVES)
    pair = PairNegatives(query_id, positive_id, negative_ids)
    scores = record.get("teacher_scores", [])
    if not isinstance(scores, list) or len(scores) not in (0, len(negative_ids)):
        raise BadInput(
            f"{where}: 'teacher_scores' should be a list as long as 'negative_ids' "
            f"({len(negative_ids)})"
        )
    pair.teacher_scores = [_score(score, "teacher_scores", where) for score in scores]
    pair.teacher_positive_score = _score(
        record.get("teacher_positive_score"), "teacher_positive_score", where
    )
    if pair.teacher_positive_score is not None and negative_ids and not scores:
        raise BadInput(
            f"{where}: has a 'teacher_positive_score' and no 'teacher_scores'",
            hint="a teacher scores a positive together with its negatives: mine with --teacher",
        )
    return pair


def _id(value: object) -> object:
    """An id that is a whole number, as a corpus may have it, as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _score(value: object, name: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{where}: {name!r} should contain finite numbers or null, found {value!r}")
    return float(value)
