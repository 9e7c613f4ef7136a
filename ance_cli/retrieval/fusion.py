"""One ranking out of several runs: reciprocal ranks, or weighted sums of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ance_cli.formats.trec import Run, in_trec_order

Scores = Mapping[str, float]


def reciprocal_ranks(runs: Sequence[Run], weights: Sequence[float], k: int) -> Run:
    """Sum over the runs of weight / (k + rank), ranks from 1 (Cormack et al., SIGIR 2009: RRF).

    A run without the document adds nothing.
    """

    def of_list(hits: Scores) -> tuple[dict[str, float], float]:
        ranks = enumerate(in_trec_order(hits), start=1)
        return {doc_id: 1 / (k + rank) for rank, (doc_id, _) in ranks}, 0.0

    return _fused(runs, weights, of_list)


def weighted_sum(runs: Sequence[Run], weights: Sequence[float], norm: str) -> Run:
    """Sum over the runs of weight x score, each list of a query normalised first.

    `norm` is `minmax`, (s - min) / (max - min); `z`, (s - mean) / standard deviation (of the
    population); or `none`. A list whose scores are all equal is all 0 in the first two. A document
    that is not in a list gets the lowest score of that list: it would have ranked below it. A run
    without results for a query adds nothing to that query.
    """

    def of_list(hits: Scores) -> tuple[dict[str, float], float]:
        scores = np.fromiter(hits.values(), np.float64, len(hits))
        if norm != "none":
            centre = scores.min() if norm == "minmax" else scores.mean()
            spread = np.ptp(scores) if norm == "minmax" else scores.std()
            # the standard deviation of equal scores may be a rounding error instead of 0
            scores = (scores - centre) / spread if np.ptp(scores) else np.zeros_like(scores)
        return dict(zip(hits, scores.tolist(), strict=True)), float(scores.min())

    return _fused(runs, weights, of_list)


def _fused(
    runs: Sequence[Run],
    weights: Sequence[float],
    of_list: Callable[[Scores], tuple[dict[str, float], float]],
) -> Run:
    """Weighted sums; `of_list` returns a list's contributions, and that of a document that is not
    in the list."""
    fused: Run = {}
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        lists = [
            (weight, *of_list(run[query_id]))
            for run, weight in zip(runs, weights, strict=True)
            if query_id in run
        ]
        doc_ids = dict.fromkeys(doc_id for _, scores, _ in lists for doc_id in scores)
        fused[query_id] = {
            doc_id: sum(weight * scores.get(doc_id, missing) for weight, scores, missing in lists)
            for doc_id in doc_ids
        }
    return fused
