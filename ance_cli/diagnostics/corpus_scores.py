"""Scores of every document of the corpus as a negative of some pairs, from the stored vectors."""

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
"""Memory of a pair for each document of the corpus."""


@dataclass(frozen=True)
class PairLoss:
    """The loss l(s+, s-) of a pair with one negative: its name, the margin of `hinge`, and the
    factor on the scores."""

    name: LossName
    margin: float
    scale: float


@dataclass(frozen=True)
class CorpusScores:
    """Queries, each with one positive, over a corpus of N documents.

    `xq` (n, d) queries, `positive_docs` (n,) the positives' positions in the corpus, `positives`
    (n, d) the positives' vectors; `scores` (n, N) q . d, `nearness` (n, N) d . d+, `lengths` (n, N)
    |d|^2. MaxP: a document's vector is its row that scores best for the query.
    """

    xq: Singles
    positive_docs: Sequence[int]
    positives: Singles
    scores: Singles
    nearness: Singles
    lengths: Singles


def compute(xq: Singles, positives: Sequence[int], embeddings: Embeddings) -> CorpusScores:
    """Read the corpus once; `positives` are the documents' positions, one for each row of `xq`."""
    offsets = embeddings.doc_offsets
    chosen = []
    for query, doc in zip(xq, positives, strict=True):
        rows = embeddings.rows(np.arange(offsets[doc], offsets[doc + 1]))
        chosen.append(rows[np.argmax(rows @ query)])
    plus = np.stack(chosen)
    shape = (len(xq), embeddings.num_docs)
    found = CorpusScores(xq, positives, plus, *(np.empty(shape, np.float32) for _ in range(3)))
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
    """(R, d) for each row of `weights` (R, N) the weighted sum of all documents' vectors. With MaxP
    a document's vector depends on the pair; `pair_of` gives the pair of each row. Reads the corpus
    once."""
    sums = np.zeros((len(weights), embeddings.dim))
    for docs, rows, best in _best_rows(xq, embeddings):
        exact = rows.astype(np.float64)
        for nth, pair in enumerate(pair_of):
            sums[nth] += weights[nth, docs].astype(np.float64) @ exact[best[pair]]
    return sums


def _best_rows(xq: Singles, embeddings: Embeddings) -> Iterator[tuple[slice, Singles, Positions]]:
    """For each block its documents, their rows (r, d), and (n, docs) the row of each document that
    scores best for each query."""
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
            positions = np.where(scores == top, np.arange(len(rows)), len(rows))
            best = np.minimum.reduceat(positions, begins, axis=1)
        yield slice(int(start), int(stop)), rows, best


def score_gradients(positive: float, negatives: Singles, loss: PairLoss) -> tuple[Doubles, Doubles]:
    """(N,) dl/ds+ and (N,) dl/ds- of the loss with each negative alone, for the scores before
    `loss.scale`."""
    pairs = torch.tensor(
        np.stack([np.full(len(negatives), positive), negatives.astype(np.float64)], 1),
        requires_grad=True,
    )
    total = LOSSES[loss.name](pairs * loss.scale, loss.margin) * len(pairs)
    (found,) = torch.autograd.grad(total, pairs)
    return found[:, 0].numpy(), found[:, 1].numpy()
