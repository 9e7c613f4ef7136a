"""Every document of the corpus as a negative of some pairs, from the stored vectors alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ance_cli.config.sets import LossName
from ance_cli.formats.embeddings import Embeddings
from ance_cli.training.loss import LOSSES

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

BYTES_A_DOCUMENT = 32
"""What a pair takes in memory for each document of the corpus."""


@dataclass(frozen=True)
class CorpusScores:
    """Queries, each with one positive, over a corpus of N documents.

    `xq` (n, d) queries, `positives` (n, d) the positives' vectors; `scores` (n, N) q . d,
    `nearness` (n, N) d . d+, `lengths` (n, N) |d|^2. MaxP: of a document's rows the one that scores
    best for the query stands for it.
    """

    xq: Singles
    positives: Singles
    scores: Singles
    nearness: Singles
    lengths: Singles


def compute(xq: Singles, positives: Sequence[int], embeddings: Embeddings) -> CorpusScores:
    """Read the corpus once; `positives` are the documents' positions, one for each row of `xq`."""
    offsets = embeddings.doc_offsets
    chosen = []
    for query, doc in zip(xq, positives, strict=True):
        rows = embeddings.vectors[offsets[doc] : offsets[doc + 1]].astype(np.float32)
        chosen.append(rows[np.argmax(rows @ query)])
    plus = np.stack(chosen)
    shape = (len(xq), embeddings.num_docs)
    found = CorpusScores(xq, plus, *(np.empty(shape, np.float32) for _ in range(3)))
    for docs, rows, best in _best_rows(xq, embeddings):
        squares = np.einsum("rd,rd->r", rows, rows)
        for array, values in (
            (found.scores, xq @ rows.T),
            (found.nearness, plus @ rows.T),
            (found.lengths, np.broadcast_to(squares, (len(xq), len(rows)))),
        ):
            array[:, docs] = np.take_along_axis(values, best, 1)
    return found


def weighted_sums(
    weights: Singles, pair_of: Sequence[int], xq: Singles, embeddings: Embeddings
) -> Doubles:
    """(R, d) for each row of `weights` (R, N) the weighted sum of all documents' vectors, as they
    stand for the pair `pair_of` that row; reads the corpus once."""
    sums = np.zeros((len(weights), embeddings.dim))
    for docs, rows, best in _best_rows(xq, embeddings):
        exact = rows.astype(np.float64)
        for nth, pair in enumerate(pair_of):
            sums[nth] += weights[nth, docs].astype(np.float64) @ exact[best[pair]]
    return sums


def _best_rows(xq: Singles, embeddings: Embeddings) -> Iterator[tuple[slice, Singles, Positions]]:
    """Block by block the documents, their rows (r, d), and (n, docs) which of the rows scores best
    for each query."""
    for first, block in embeddings.blocks():
        rows = block.astype(np.float32)
        start, stop = np.searchsorted(embeddings.doc_offsets, [first, first + len(rows)])
        begins = embeddings.doc_offsets[start:stop] - first
        counts = np.diff(np.append(begins, len(rows)))
        if counts.max() == 1:
            best = np.broadcast_to(begins, (len(xq), len(begins)))
        else:
            scores = xq @ rows.T
            top = np.repeat(np.maximum.reduceat(scores, begins, axis=1), counts, axis=1)
            places = np.where(scores == top, np.arange(len(rows)), len(rows))
            best = np.minimum.reduceat(places, begins, axis=1)
        yield slice(int(start), int(stop)), rows, best


def score_gradients(
    positive: float, negatives: Singles, loss: LossName, margin: float, scale: float
) -> tuple[Doubles, Doubles]:
    """(N,) dl/ds+ and (N,) dl/ds- of the loss l(s+, s-) with each negative alone.

    The scores are those before `scale`.
    """
    pairs = torch.tensor(
        np.stack([np.full(len(negatives), positive), negatives.astype(np.float64)], 1),
        requires_grad=True,
    )
    total = LOSSES[loss](pairs * scale, margin) * len(pairs)
    (found,) = torch.autograd.grad(total, pairs)
    return found[:, 0].numpy(), found[:, 1].numpy()
