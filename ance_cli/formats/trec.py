"""Runs in TREC's six columns: `query_id Q0 doc_id rank score tag`.

trec_eval ignores the rank column: it sorts by the score as a 32-bit float, and breaks ties by
document id, descending. Runs are written in that order, so that the rank column agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.jsonl import read_lines, refuse
from ance_cli.formats.manifest import check_sidecar

_SHOWN = 40
"""Characters shown of a text that is no score."""

Run = dict[str, dict[str, float]]
"""query_id -> doc_id -> score."""


def in_trec_order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """(doc_id, score) as trec_eval ranks them: 32-bit score, then doc_id, both descending."""
    return sorted(scores.items(), key=lambda hit: (float(np.float32(hit[1])), hit[0]), reverse=True)


def write_hits(
    handle: IO[bytes], query_id: str, hits: Iterable[tuple[str, float]], tag: str, decimals: int = 6
) -> None:
    """Append the hits of one query, in the order in which trec_eval ranks the rounded scores."""
    lines = [
        f"{query_id} Q0 {doc_id} {rank} {score:.{decimals}f} {tag}\n"
        for rank, (doc_id, score) in enumerate(
            in_trec_order({doc_id: round(score, decimals) for doc_id, score in hits}), start=1
        )
    ]
    handle.write("".join(lines).encode())


class Hit(NamedTuple):
    """One line of a run."""

    query_id: str
    doc_id: str
    score: float
    rank: str
    """The text in the file, uninterpreted."""


def read_hits(path: Path, skipped: SkippedLines | None = None) -> Iterator[tuple[int, Hit]]:
    """Yield the lines of a run file with their numbers; nothing is kept in memory.

    Raises `BadInput`, after the last line, if the file differs from its sidecar manifest: a line
    that is broken says more.
    """
    found = False
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            try:
                columns = line.decode("utf-8").split()
            except UnicodeDecodeError:
                raise BadInput(f"{where}: not valid UTF-8") from None
            if len(columns) != 6:
                raise BadInput(
                    f"{where}: expected TREC's 6 columns (query_id Q0 doc_id rank score tag), "
                    f"found {len(columns)}"
                )
            query_id, _, doc_id, rank, text, _ = columns
            try:
                score = float(text.replace("_", "?"))  # Python's 1_0 is no number elsewhere
            except ValueError:
                raise BadInput(
                    f"{where}: the score should be a number, found {text[:_SHOWN]!r}"
                ) from None
            if not math.isfinite(score):
                raise BadInput(f"{where}: the score is {text[:_SHOWN]}, expected a finite number")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, Hit(query_id, doc_id, score, rank)
        found = True
    if found:
        check_sidecar(path)


def read_run(
    path: Path, skipped: SkippedLines | None = None, known_docs: Container[str] | None = None
) -> Run:
    """Read a run file.

    Raises `BadInput` for a missing column, a score that is not a number, a document that occurs
    twice for a query, a document that is not in `known_docs`, and a file without hits.
    """
    run: Run = {}
    for number, (query_id, doc_id, score, _) in read_hits(path, skipped):
        where = f"{path}:{number}: document {doc_id!r}"
        hits = run.setdefault(query_id, {})
        if known_docs is not None and doc_id not in known_docs:
            problem = BadInput(
                f"{where} is not in the corpus",
                hint="name the corpus that the run was made from with --data",
            )
            refuse(problem, skipped)
        elif doc_id in hits:
            refuse(BadInput(f"{where} occurs twice for query {query_id!r}"), skipped)
        else:
            hits[doc_id] = score
    if not run:
        raise BadInput(
            f"{path}: the file has no hits",
            hint="expected lines like `q1 Q0 d1 1 12.5 tag`, as `ance search` writes them",
        )
    return run
