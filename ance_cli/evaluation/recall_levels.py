"""Interpolated precision at a recall level, as trec_eval 10 computes it.

trec_eval 9, which pytrec_eval contains, counts `(long) (r * R + 0.9)` documents for the level r of
R relevant documents. Version 10, which made the figures that NIST publishes, rounds to the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def interpolated_precision(
    ranked: Sequence[str], judged: Mapping[str, int], level: float, rel: int
) -> float:
    """The highest precision at a rank by which the share `level` of the relevant documents has been
    found.

    `ranked` are documents, best first; documents with label `rel` or higher are relevant.
    """
    relevant = {doc_id for doc_id, grade in judged.items() if grade >= rel}
    wanted = math.floor(level * len(relevant) + 0.5)
    hits = np.cumsum([doc_id in relevant for doc_id in ranked])
    precision = hits / np.arange(1, len(ranked) + 1)
    return float(precision[hits >= wanted].max(initial=0.0))
