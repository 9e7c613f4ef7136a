"""One pair of a query and a positive, and every sampler's distribution over its negatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.config import DiagnoseConfig
from ance_cli.diagnostics.corpus_scores import CorpusScores, PairLoss, score_gradients
from ance_cli.diagnostics.theory import (
    EncodingSum,
    Moments,
    encoding_norms,
    hardest_of_batch,
    mixture,
    oracle,
    second_moment,
    uniform_on,
)

RAND, NCE, BM25, ANCE, MIXED, ORACLE = "rand", "nce", "bm25", "ance", "ance+rand", "oracle"
KINDS = (RAND, NCE, BM25, ANCE, MIXED, ORACLE)
MIXED_SHARE = 0.1
"""Share of `rand` in `ance+rand`, which makes the support the whole corpus again."""

Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

ExactMoments = tuple[dict[str, Moments], float]
"""The enumerated moments of a pair by sampler, and |G|^2."""


@dataclass(frozen=True)
class Draws:
    """Independent draws of a sampler: positions in the corpus, and the weights 1 / (N p)."""

    docs: Positions
    weights: Doubles


@dataclass(frozen=True)
class OracleDraws:
    """The oracle's draws, and for each sampler (K,) N p of the drawn documents under it."""

    draws: Draws
    densities: Mapping[str, Doubles]


@dataclass(frozen=True)
class Pair:
    """A pair's N negatives, in corpus order.

    `docs` (N,) their positions in the corpus; `scores` (N,); `to_positive`, `to_negative` (N,)
    dl/ds+ and dl/ds-; `norms` (N,) the gradient's norm at the encodings; `p` kind -> (N,).
    """

    number: int
    """The pair's row in `CorpusScores`."""
    docs: Positions
    scores: Singles
    positive_score: float
    to_positive: Doubles
    to_negative: Doubles
    norms: Doubles
    ranked: Positions
    """(N,) indices into `docs`, highest score first, ties in corpus order."""
    p: Mapping[str, Doubles]

    @classmethod
    def of(
        cls,
        corpus_scores: CorpusScores,
        number: int,
        docs: Positions,
        listed: Mapping[str, Positions],
        config: DiagnoseConfig,
        loss: PairLoss,
    ) -> Pair:
        """The pair in row `number` of `corpus_scores`, with the negatives at the positions `docs`.

        `listed` holds the positions, best first, that BM25 found and that an index found for ANCE;
        without an index ANCE has the exact ranking. Each draws from its first `config.depth`
        negatives.
        """
        row = corpus_scores.scores[number]
        scores = row[docs]
        positive_score = float(row[corpus_scores.positive_docs[number]])
        a, b = score_gradients(positive_score, scores, loss)
        query, plus = corpus_scores.xq[number], corpus_scores.positives[number]
        norms = encoding_norms(
            a, b, corpus_scores.lengths[number, docs], corpus_scores.nearness[number, docs],
            float(plus @ plus), float(query @ query),
        )  # fmt: skip
        ranked = np.argsort(-scores, kind="stable")
        total = len(docs)
        p = {RAND: uniform_on(np.arange(total), total)}
        p[NCE] = hardest_of_batch(ranked, config.batch_size - 1)
        for kind, found in {ANCE: docs[ranked], **listed}.items():
            top = found[np.isin(found, docs)][: config.depth]
            inside = np.flatnonzero(np.isin(docs, top))
            if len(inside):
                p[kind] = uniform_on(inside, total)
        if ANCE in p:
            p[MIXED] = mixture(p[ANCE], p[RAND], MIXED_SHARE)
        p[ORACLE] = oracle(norms)
        return cls(number, docs, scores, positive_score, a, b, norms, ranked, p)

    def draw(self, kind: str, count: int, rng: np.random.Generator) -> Draws:
        """`count` independent draws of a sampler."""
        p = self.p[kind]
        drawn = rng.choice(len(p), count, p=p)
        return Draws(self.docs[drawn], 1 / (len(p) * p[drawn]))

    def top(self, depth: int) -> Positions:
        """Indices of the `depth` best-scoring negatives: those ranked high at test time."""
        return self.ranked[:depth]

    def sum_over(self, inside: npt.NDArray[np.bool_], vectors: Doubles) -> EncodingSum:
        """The sum of the gradients of some negatives; `vectors` is their weighted sum."""
        a, b = self.to_positive[inside], self.to_negative[inside]
        return EncodingSum(float(a.sum()), float((b**2).sum()), vectors)


class Enumeration:
    """The exact moments of one pair's samplers, from weighted sums of vectors.

    Of the arrays over the corpus it keeps only the weights of the vectors.
    """

    def __init__(self, pair: Pair, num_docs: int) -> None:
        self.number, self.total = pair.number, len(pair.docs)
        nothing = np.zeros(0)
        self._seconds = {kind: second_moment(pair.norms, p) for kind, p in pair.p.items()}
        self._all = pair.sum_over(np.ones(self.total, bool), nothing)
        self._outside: dict[str, EncodingSum] = {}
        rows = [pair.to_negative]
        for kind, p in pair.p.items():
            outside = p == 0
            if kind != ORACLE and outside.any():  # the gradient is 0 wherever the oracle's p is
                self._outside[kind] = pair.sum_over(outside, nothing)
                rows.append(np.where(outside, pair.to_negative, 0))
        self.weights = np.zeros((len(rows), num_docs), np.float32)
        self.weights[:, pair.docs] = rows

    def moments(self, sums: Doubles, positive: Singles, query_length: float) -> ExactMoments:
        """The moments of each sampler and |G|^2; `sums` are the weighted sums by `weights`."""

        def mean(of: EncodingSum) -> float:
            return of.mean_square(positive, query_length, self.total)

        whole = self._all._replace(vectors=sums[0])
        found = {}
        left = iter(sums[1:])
        for kind, second in self._seconds.items():
            bias, inside = 0.0, whole
            if kind in self._outside:
                outside = self._outside[kind]._replace(vectors=next(left))
                bias = mean(outside)
                inside = whole.without(outside)
            found[kind] = Moments(second - mean(inside), bias, mean(inside))
        return found, mean(whole)
