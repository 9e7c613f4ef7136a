"""Runs in TREC's six columns: `query_id Q0 doc_id rank score tag`.

trec_eval ignores the rank column: it orders by score, as a 32-bit float, and breaks ties by
document id, descending. Runs are written in that order, so that the ranks are the ones judged.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ance_cli.errors import BadInput
from ance_cli.formats.jsonl import Skipped, read_lines, refuse

Run = dict[str, dict[str, float]]
"""query_id -> doc_id -> score."""


def in_trec_order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """(doc_id, score) as trec_eval ranks them: 32-bit score, then doc_id, both descending."""
    return sorted(scores.items(), key=lambda hit: (float(np.float32(hit[1])), hit[0]), reverse=True)


def write_hits(
    handle: IO[bytes], query_id: str, hits: Iterable[tuple[str, float]], tag: str
) -> None:
    """Append one query's hits, ranked as trec_eval does."""
    lines = [
        f"{query_id} Q0 {doc_id} {rank} {score:.6f} {tag}\n"
        for rank, (doc_id, score) in enumerate(
            in_trec_order({doc_id: round(score, 6) for doc_id, score in hits}), start=1
        )
    ]
    handle.write("".join(lines).encode())


def read_run(
    path: Path, skipped: Skipped | None = None, known_docs: Container[str] | None = None
) -> Run:
    """A run file; columns that are missing, scores that are no numbers, repeats and documents that
    the corpus does not know are errors."""
    run: Run = {}
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
            query_id, _, doc_id, _, text, _ = columns
            try:
                score = float(text)
            except ValueError:
                raise BadInput(f"{where}: the score should be a number, found {text!r}") from None
            if not math.isfinite(score):
                raise BadInput(f"{where}: the score is {text}, expected a finite number")
            if known_docs is not None and doc_id not in known_docs:
                raise BadInput(
                    f"{where}: document {doc_id!r} is not in the corpus",
                    hint="the run should come from the corpus that --data names",
                )
            hits = run.setdefault(query_id, {})
            if doc_id in hits:
                raise BadInput(f"{where}: document {doc_id!r} stands twice for query {query_id!r}")
            hits[doc_id] = score
        except BadInput as problem:
            refuse(problem, skipped)
    if not run:
        raise BadInput(
            f"{path}: there is no hit in it",
            hint="expected lines like `q1 Q0 d1 1 12.5 tag`, as `ance search` writes them",
        )
    return run
