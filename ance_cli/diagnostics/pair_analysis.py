"""What is kept of one pair once its distributions over the corpus are gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.diagnostics.pair import ORACLE, Draws, Pair
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
    """Its probability of the negatives met when testing."""
    oracle_mass: float
    """The oracle's probability of its support."""
    norm: float
    """Expected norm of the gradient at the encodings."""


@dataclass(frozen=True)
class PairAnalysis:
    """A pair: positions of documents, scores, and what each sampler drew."""

    query_id: str
    positive_id: str
    positive: int
    positive_score: float
    num_negatives: int
    samplings: dict[str, Sampling]
    draws: dict[str, Draws]
    densities: dict[str, Doubles]
    """N p under each sampler, of what the oracle drew."""
    drawn_norms: dict[int, float]
    """position -> norm of the gradient at the encodings, of everything drawn"""
    top: Positions
    """Positions of the negatives met when testing, best first."""
    top_scores: Doubles
    bm25: Positions
    """Positions of BM25's negatives, best first."""
    above_average: Doubles
    """(ranks,) scores minus the corpus average."""
    reciprocal_ranks: dict[str, float]
    """Of the positive among the negatives, by the model and by BM25."""
    simulated: dict[str, float]
    """Share of simulated batches with an informative negative."""


def analyze(
    pair: Pair,
    query_id: str,
    positive_id: str,
    positive: int,
    bm25: Positions,
    positives_of_split: Positions,
    ranks: Positions,
    depth: int,
    draws: int,
    batch_size: int,
    seed: int,
) -> PairAnalysis:
    """Everything that needs the pair's whole corpus; `bm25` is BM25's raw list, best first.

    Informative (D-*) are the `depth` best-scoring negatives. `ranks` from 0 are those at which the
    tail of the scores is kept.
    """

    def generator(what: str) -> np.random.Generator:
        return keyed_generator(seed, "diagnose", query_id, positive_id, what)

    top = pair.top(depth)
    informative = np.zeros(len(pair.docs), bool)
    informative[top] = True
    in_batch = np.isin(positives_of_split, pair.docs[top])
    drawn = {kind: pair.draw(kind, draws, generator(kind)) for kind in pair.p}
    place_of = {
        doc: place
        for found in drawn.values()
        for doc, place in zip(found.docs.tolist(), _places(pair, found).tolist(), strict=True)
    }
    listed = bm25[np.isin(bm25, pair.docs) | (bm25 == positive)]
    found_at = np.flatnonzero(listed == positive)
    return PairAnalysis(
        query_id,
        positive_id,
        positive,
        pair.positive_score,
        len(pair.docs),
        {kind: _sampling(pair, p, informative) for kind, p in pair.p.items()},
        drawn,
        {kind: len(p) * p[_places(pair, drawn[ORACLE])] for kind, p in pair.p.items()},
        {doc: float(pair.norms[place]) for doc, place in place_of.items()},
        pair.docs[top],
        pair.scores[top].astype(np.float64),
        listed[listed != positive][:depth],
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


def _places(pair: Pair, draws: Draws) -> Positions:
    """Where what was drawn stands among the pair's negatives."""
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
    """Scores minus their average over the negatives, at some ranks; NaN beyond the last one."""
    ordered = pair.scores[pair.ranked].astype(np.float64)
    values = np.full(len(ranks), np.nan)
    there = ranks < len(ordered)
    values[there] = ordered[ranks[there]] - ordered.mean()
    return values


def ranks_to_show(num_docs: int, depth: int) -> Positions:
    """Every rank of the top (from 0), and up to sixty beyond it, ever further apart."""
    beyond = np.geomspace(depth, max(num_docs - 1, depth), 60).astype(np.int64)
    shown = np.unique(np.concatenate([np.arange(depth), beyond]))
    return shown[shown < num_docs]
