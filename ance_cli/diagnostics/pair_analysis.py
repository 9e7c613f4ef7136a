"""What is kept of one pair after its distributions over the corpus are dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.config import DiagnoseConfig
from ance_cli.diagnostics.pair import ORACLE, Draws, OracleDraws, Pair
from ance_cli.diagnostics.pair_set import SampledPair
from ance_cli.diagnostics.theory import simulated_batches
from ance_cli.mining.sampling import keyed_generator

TRIALS = 1_000
"""Simulated batches for each pair."""

Doubles = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """One sampler's distribution over a pair's negatives, in a few figures."""

    support: int
    """Negatives with p > 0."""
    test_time: float
    """Its probability of the negatives that the model ranks high at test time."""
    oracle_mass: float
    """The oracle's probability of its support."""
    norm: float
    """Expected norm of the gradient at the encodings."""


@dataclass(frozen=True)
class PairAnalysis:
    """A pair: positions of documents, scores, and the draws of each sampler."""

    query_id: str
    positive_id: str
    positive: int
    positive_score: float
    num_negatives: int
    samplings: dict[str, Sampling]
    draws: dict[str, Draws]
    densities: dict[str, Doubles]
    """N p under each sampler, for the oracle's draws."""
    drawn_norms: dict[int, float]
    """position -> norm of the gradient at the encodings, for every drawn document"""
    top: Positions
    """Positions of the negatives that the model ranks high at test time, best first."""
    top_scores: Doubles
    bm25: Positions
    """Positions of BM25's negatives, best first."""
    above_average: Doubles
    """(ranks,) scores minus the corpus average."""
    reciprocal_ranks: dict[str, float]
    """Of the positive among the negatives, for the model and for BM25."""
    simulated: dict[str, float]
    """Share of simulated batches with an informative negative."""

    @property
    def drawn(self) -> OracleDraws:
        return OracleDraws(self.draws[ORACLE], self.densities)


def analyze(
    pair: Pair,
    of: SampledPair,
    bm25: Positions,
    positives_of_split: Positions,
    ranks: Positions,
    config: DiagnoseConfig,
) -> PairAnalysis:
    """Everything that needs the pair's whole corpus; `bm25` is BM25's unfiltered list, best first.

    The `config.depth` best-scoring negatives are informative (D-*). `ranks` (from 0) are the ranks
    at which the tail of the scores is kept.
    """

    def generator(what: str) -> np.random.Generator:
        return keyed_generator(config.seed, "diagnose", of.query_id, of.positive_id, what)

    depth, batch_size = config.depth, config.batch_size
    top = pair.top(depth)
    informative = np.zeros(len(pair.docs), bool)
    informative[top] = True
    in_batch = np.isin(positives_of_split, pair.docs[top])
    drawn = {kind: pair.draw(kind, config.draws, generator(kind)) for kind in pair.p}
    index_of = {
        doc: index
        for found in drawn.values()
        for doc, index in zip(found.docs.tolist(), _indices(pair, found).tolist(), strict=True)
    }
    listed = bm25[np.isin(bm25, pair.docs) | (bm25 == of.positive)]
    found_at = np.flatnonzero(listed == of.positive)
    return PairAnalysis(
        of.query_id,
        of.positive_id,
        of.positive,
        pair.positive_score,
        len(pair.docs),
        {kind: _sampling(pair, p, informative) for kind, p in pair.p.items()},
        drawn,
        {kind: len(p) * p[_indices(pair, drawn[ORACLE])] for kind, p in pair.p.items()},
        {doc: float(pair.norms[index]) for doc, index in index_of.items()},
        pair.docs[top],
        pair.scores[top].astype(np.float64),
        listed[listed != of.positive][:depth],
        _tail(pair, ranks),
        {
            "model": 1 / (1 + int((pair.scores > pair.positive_score).sum())),
            "bm25": 1 / (1 + int(found_at[0])) if len(found_at) else 0.0,
        },
        {
            "uniform": simulated_batches(informative, batch_size, TRIALS, generator("batch")),
            "in_batch": simulated_batches(in_batch, batch_size - 1, TRIALS, generator("in-batch")),
        },
    )


def _indices(pair: Pair, draws: Draws) -> Positions:
    """The indices of the drawn documents among the pair's negatives."""
    return np.asarray(np.searchsorted(pair.docs, draws.docs), np.int64)


def _sampling(pair: Pair, p: Doubles, informative: npt.NDArray[np.bool_]) -> Sampling:
    inside = p > 0
    return Sampling(
        int(inside.sum()),
        float(p[informative].sum()),
        float(pair.p[ORACLE][inside].sum()),
        float(p @ pair.norms),
    )


def _tail(pair: Pair, ranks: Positions) -> Doubles:
    """Scores minus their average over the negatives at some ranks; NaN beyond the last rank."""
    ordered = pair.scores[pair.ranked].astype(np.float64)
    values = np.full(len(ranks), np.nan)
    there = ranks < len(ordered)
    values[there] = ordered[ranks[there]] - ordered.mean()
    return values
