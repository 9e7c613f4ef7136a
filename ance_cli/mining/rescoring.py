"""The model's scores of documents that another source found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ance_cli.formats.embeddings import Embeddings
from ance_cli.mining.sampling import Floats, Positions

Rescore = Callable[[str, Positions], Floats]
"""(query_id, document positions) -> the model's score of each document for the query"""


class ExactScores:
    """Inner products of a query with documents; MaxP: the maximum over a document's rows.

    A score does not depend on the other documents of the call or on the number of threads, so the
    same vectors give the same draw on every machine.
    """

    def __init__(
        self, xq: npt.NDArray[np.float32], query_ids: Sequence[str], embeddings: Embeddings
    ) -> None:
        self._vector_of = dict(zip(query_ids, xq, strict=True))
        self._embeddings = embeddings

    def __call__(self, query_id: str, docs: Positions) -> npt.NDArray[np.float32]:
        """(docs,) float32."""
        if not len(docs):
            return np.zeros(0, np.float32)
        offsets = self._embeddings.doc_offsets
        counts = offsets[docs + 1] - offsets[docs]
        starts = np.cumsum(counts) - counts
        rows = np.repeat(offsets[docs] - starts, counts) + np.arange(counts.sum())
        vectors = self._embeddings.rows(rows)  # (rows, d)
        scores = np.einsum("rd,d->r", vectors, self._vector_of[query_id])
        return np.asarray(np.maximum.reduceat(scores, starts), np.float32)
