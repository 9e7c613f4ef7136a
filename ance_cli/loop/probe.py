"""Drift: how far the model has moved from the one that made the published negatives.

A probe is a fixed sample of queries and passages. Two models are compared by the passages that each
ranks first within the sample for each query: the overlap of the two lists, 1 = the same passages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ance_cli.mining.sampling import keyed_generator

NUM_QUERIES = 64
NUM_PASSAGES = 2048
DEPTH = 10

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def sample(total: int, count: int, seed: int, what: str) -> Ints:
    """`count` of `total` positions (all, if there are fewer), ascending; a function of the
    arguments."""
    rng = keyed_generator(seed, "probe", what)
    return np.sort(rng.choice(total, min(count, total), replace=False))


def top(xq: Floats, rows: Floats, row_counts: npt.NDArray[np.integer]) -> list[list[int]]:
    """The `DEPTH` best of the probe's passages for each query, best first.

    `xq` (queries, d); `rows` (sum of row_counts, d), passage by passage; a passage scores as its
    best row does (MaxP). Of passages with equal scores the earlier one is first.
    """
    starts = np.cumsum(row_counts) - row_counts
    scores = np.maximum.reduceat(xq @ rows.T, starts, axis=1)  # (queries, passages)
    ranked: list[list[int]] = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    return ranked


def overlap(before: Sequence[Sequence[int]], now: Sequence[Sequence[int]]) -> float:
    """Mean share of each earlier list that the later list contains, in any order."""
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(before, now, strict=True) if len(a)]
    return float(np.mean(shares)) if shares else 1.0
