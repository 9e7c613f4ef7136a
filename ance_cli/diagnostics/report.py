"""The analyses of all pairs as tables, and as the curves of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ance_cli.diagnostics.examples import Gradients
from ance_cli.diagnostics.pair import KINDS, ExactMoments
from ance_cli.diagnostics.pair_analysis import PairAnalysis
from ance_cli.diagnostics.theory import Moments, batch_probability, paper_batch_probability
from ance_cli.training.gradients import GROUPS

CURVES = 10
"""Queries whose tail of scores is kept, as in the paper's figure."""
PANELS = 3
"""Queries in each of the figures of wins and of losses."""


def sampler_rows(
    analyses: Sequence[PairAnalysis],
    exact: Sequence[ExactMoments],
    gradients: Sequence[Gradients],
) -> list[dict[str, Any]]:
    """A row for each sampler: means over the pairs that have it.

    `bias` is the norm of the missing gradient as a share of the norm of the whole gradient, both
    as root mean squares over the pairs. `variance` is Tr(Var); a few hard pairs dominate its mean.
    `noise` is the median of Tr(Var) / |G|^2 over the pairs, in which each pair counts alike. A bias
    that was estimated from draws as below zero counts as zero.
    """
    rows = []
    for kind in KINDS:
        having = [n for n, analysis in enumerate(analyses) if kind in analysis.samplings]
        if not having:
            continue
        shapes = [analyses[n].samplings[kind] for n in having]
        norms = [
            [gradients[n].norms[doc] for doc in analyses[n].draws[kind].docs.tolist()]
            for n in having
        ]
        flat = [norm for listed in norms for norm in listed]
        rows.append(
            {
                "sampler": kind,
                "pairs": len(having),
                "support": float(np.mean([shape.support for shape in shapes])),
                "test_time": float(np.mean([shape.test_time for shape in shapes])),
                "oracle_mass": float(np.mean([shape.oracle_mass for shape in shapes])),
                "encodings": {
                    "norm": float(np.mean([shape.norm for shape in shapes])),
                    **_moments([(exact[n][0][kind], exact[n][1]) for n in having]),
                },
                "parameters": {
                    "norm": float(np.mean([norm["all"] for norm in flat])),
                    "median_norm": float(np.median([norm["all"] for norm in flat])),
                    "by_group": {
                        group: float(np.mean([norm[group] for norm in flat])) for group in GROUPS
                    },
                    **_moments([(gradients[n].moments[kind], gradients[n].mean) for n in having]),
                },
            }
        )
    return rows


def _moments(found: Sequence[tuple[Moments, float]]) -> dict[str, float | None]:
    variance, bias, whole = (
        float(np.mean(values))
        for values in (
            [moments.variance for moments, _ in found],
            [moments.bias for moments, _ in found],
            [mean for _, mean in found],
        )
    )
    share = float(np.sqrt(max(bias, 0) / whole)) if whole > 0 else None
    noise = [moments.variance / mean for moments, mean in found if mean > 0]
    return {
        "variance": variance,
        "bias": share,
        "squared_error": variance + max(bias, 0),
        "noise": float(np.median(noise)) if noise else None,
    }


def bound(analyses: Sequence[PairAnalysis], gradients: Sequence[Gradients]) -> dict[str, Any]:
    """How well the gradients at the encodings rank the true gradients (ICLR Eqn. 12): Spearman's
    rho over all differentiated negatives, None if one of the two does not vary."""
    seen = [
        (analysis.drawn_norms[doc], norm["all"])
        for analysis, found in zip(analyses, gradients, strict=True)
        for doc, norm in found.norms.items()
    ]
    first, second = np.array(seen).T
    varies = np.ptp(first) > 0 and np.ptp(second) > 0
    rho = float(stats.spearmanr(first, second).statistic) if varies else None
    return {"gradients": len(seen), "spearman": rho}


def batch_record(analyses: Sequence[PairAnalysis], batch: int, depth: int) -> dict[str, Any]:
    """The chance that a random batch contains an informative negative of a query."""
    sizes = [(min(depth, analysis.num_negatives), analysis.num_negatives) for analysis in analyses]
    return {
        "batch_size": batch,
        "informative": depth,
        "paper": float(np.mean([paper_batch_probability(batch, m, n) for m, n in sizes])),
        "at_least_one": float(np.mean([batch_probability(batch, m, n) for m, n in sizes])),
        **{
            f"simulated_{name}": float(np.mean([analysis.simulated[name] for analysis in analyses]))
            for name in ("uniform", "in_batch")
        },
    }


def tail_record(analyses: Sequence[PairAnalysis], ranks: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Scores minus the corpus average by rank: for the first queries, and as a mean of all."""
    curves = np.array([analysis.above_average for analysis in analyses])
    whole = ~np.isnan(curves).any(0)
    return {
        "ranks": (ranks[whole] + 1).tolist(),
        "mean": curves[:, whole].mean(0).tolist(),
        "queries": [
            {"query_id": analysis.query_id, "above_average": analysis.above_average[whole].tolist()}
            for analysis in analyses[:CURVES]
        ],
    }


def reciprocal_rank_record(analyses: Sequence[PairAnalysis]) -> dict[str, float]:
    """Mean reciprocal rank of the sampled positives, by the model and by BM25."""
    return {
        name: float(np.mean([analysis.reciprocal_ranks[name] for analysis in analyses]))
        for name in ("model", "bm25")
    }


def suspects_of(
    analyses: Sequence[PairAnalysis], count: int
) -> list[tuple[PairAnalysis, int, float]]:
    """The unlabelled documents that score highest compared with a positive: (pair, position,
    s- - s+), one per query, the largest difference first."""
    leading = [
        (analysis, int(analysis.top[0]), float(analysis.top_scores[0]) - analysis.positive_score)
        for analysis in analyses
        if len(analysis.top)
    ]
    return sorted(leading, key=lambda found: -found[2])[:count]


def panels_of(analyses: Sequence[PairAnalysis]) -> list[tuple[str, PairAnalysis]]:
    """The queries to draw: the first, and those on which the model is furthest ahead of BM25
    (`win`) and furthest behind it (`loss`)."""

    def lead(analysis: PairAnalysis) -> float:
        return analysis.reciprocal_ranks["model"] - analysis.reciprocal_ranks["bm25"]

    wins = sorted((f for f in analyses if lead(f) > 0), key=lead, reverse=True)[:PANELS]
    losses = sorted((f for f in analyses if lead(f) < 0), key=lead)[:PANELS]
    return [("example", analyses[0])] + [("win", f) for f in wins] + [("loss", f) for f in losses]
