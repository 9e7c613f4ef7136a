"""Candidates: the ranked documents of each query as arrays, read by samplers and audits.

`rows.npy` is int32 (queries, depth): positions of documents in the corpus, -1 after the end of a
shorter list. `scores.npy` is float32 of the same shape, `query_ids.txt` has one id per line.
`positive_scores.jsonl` has one object per query, with the exact score of each positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ance_cli.errors import BadInput
from ance_cli.formats import atomic
from ance_cli.formats.embeddings import load_array, read_ids, write_ids
from ance_cli.formats.jsonl import read_lines
from ance_cli.formats.manifest import MANIFEST, check_files, read_manifest
from ance_cli.formats.records import parse_record

ROWS = "rows.npy"
SCORES = "scores.npy"
QUERY_IDS = "query_ids.txt"
POSITIVE_SCORES = "positive_scores.jsonl"

_AGAIN = "mine again with --force"


@dataclass(frozen=True)
class _PositiveScores:
    query_id: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Candidates:
    """Ranked lists, best first.

    `docs` (queries, depth) int32: document positions, -1 = none. `scores` (queries, depth) float32.
    `positive_scores`: query_id -> doc_id -> score, empty if the retriever computes none.
    """

    query_ids: list[str]
    docs: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    positive_scores: dict[str, dict[str, float]]

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files into a partial folder; returns the manifest's `content`."""
        with atomic.new_file(folder / ROWS) as handle:
            np.save(handle, self.docs)
        with atomic.new_file(folder / SCORES) as handle:
            np.save(handle, self.scores)
        write_ids(folder / QUERY_IDS, self.query_ids)
        with atomic.new_file(folder / POSITIVE_SCORES) as handle:
            for query_id, scores in self.positive_scores.items():
                handle.write(orjson.dumps({"query_id": query_id, "scores": scores}) + b"\n")
        return {"queries": len(self.query_ids), "depth": int(self.docs.shape[1])}


def read_candidates(folder: Path, num_docs: int) -> Candidates:
    """Read the candidates that `Candidates.write` wrote, for a corpus of `num_docs` documents.

    Raises `BadInput` if a file is incomplete or differs from its hash in the manifest, or if the
    files do not fit together.
    """
    query_ids = read_ids(folder / QUERY_IDS)
    docs = load_array(folder / ROWS, mapped=True)
    scores = load_array(folder / SCORES, mapped=True)
    if docs.ndim != 2 or docs.shape != scores.shape or len(docs) != len(query_ids):
        raise BadInput(
            f"{folder}: {len(query_ids)} query ids, rows of shape {docs.shape} and scores of shape "
            f"{scores.shape} do not fit together",
            hint=_AGAIN,
        )
    if docs.size and not -1 <= docs.min() <= docs.max() < num_docs:
        raise BadInput(
            f"{folder / ROWS}: has a position outside the corpus of {num_docs} documents",
            hint=_AGAIN,
        )
    positive_scores = {}
    for number, line in read_lines(folder / POSITIVE_SCORES):
        where = f"{folder / POSITIVE_SCORES}:{number}"
        record = parse_record(line, _PositiveScores, where, _AGAIN)
        positive_scores[record.query_id] = record.scores
    if (folder / MANIFEST).exists():
        check_files(folder, read_manifest(folder, "candidates"), _AGAIN)
    return Candidates(query_ids, docs, scores, positive_scores)
