"""Is a difference between two runs more than chance? Paired tests and intervals, by scipy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SAMPLES = 10_000


@dataclass(frozen=True)
class PairedTest:
    """Mean difference (second - first) and two-sided p-values."""

    difference: float
    p_randomisation: float
    p_t: float


def paired_test(first: Sequence[float], second: Sequence[float], seed: int = 42) -> PairedTest:
    """Fisher's randomisation test (`SAMPLES` random flips of the signs) and the paired t test.

    Both p-values are 1 if the runs do not differ on any query, or if there is only one query.
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    mean = float(difference.mean())
    if not difference.any() or len(difference) < 2:
        return PairedTest(mean, 1.0, 1.0)

    def statistic(values: np.ndarray, axis: int = -1) -> np.ndarray:
        return values.mean(axis=axis)  # type: ignore[no-any-return]

    found = stats.permutation_test(
        (difference,),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SAMPLES,
        batch=max(1, 10_000_000 // len(difference)),
        rng=np.random.default_rng(seed),
    )
    with warnings.catch_warnings():
        # scipy warns if the differences are almost equal, and then returns p = 0, which is right
        warnings.simplefilter("ignore", RuntimeWarning)
        p_t = float(stats.ttest_rel(second, first).pvalue)
    return PairedTest(mean, float(found.pvalue), p_t)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of one family of tests, adjusted to bound the chance of any false rejection.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1 (Holm,
    1979: step-down Bonferroni).
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def confidence_interval(
    values: Sequence[float], seed: int = 42, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries."""
    data = np.asarray(values, np.float64)
    if len(data) < 2 or not np.ptp(data):
        return float(data.mean()), float(data.mean())
    found = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=2000,
        confidence_level=level,
        method="percentile",
        batch=max(1, 5_000_000 // len(data)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
