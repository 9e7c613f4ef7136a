"""What rounding costs: how much of the ranking by float32 vectors the stored vectors keep."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ance_cli.formats.row_format import Floats, RowFormat

_SAMPLE, _QUERIES, _DEPTH = 10_000, 1_000, 10


def recall_of_floats(vectors: Floats, rows: RowFormat) -> float:
    """Recall@10: the mean share of the ten best rows by `vectors` (n, d) that are also among the
    ten best by what the format keeps of them.

    The first 10,000 rows are ranked for up to 1,000 of them, evenly spaced, as queries, which are
    not rounded. A row is not ranked for itself, and ties rank by position. Up to eleven rows leave
    nothing to miss: 1.
    """
    vectors = vectors[:_SAMPLE]
    if len(vectors) <= _DEPTH + 1:
        return 1.0
    asked = np.arange(0, len(vectors), -(-len(vectors) // _QUERIES))
    exact = _best(vectors, asked, vectors)
    found = _best(vectors, asked, rows.floats(rows.stored(vectors)))
    return float((exact[:, :, None] == found[:, None]).any(2).mean())


def _best(vectors: Floats, asked: npt.NDArray[np.int64], rows: Floats) -> npt.NDArray[np.int64]:
    """(asked, 10) the rows that score best with each query, without itself."""
    scores = vectors[asked] @ rows.T
    scores[np.arange(len(asked)), asked] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :_DEPTH]
