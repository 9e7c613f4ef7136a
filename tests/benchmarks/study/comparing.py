"""Paired comparisons of cells over their queries, with Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ance_cli.evaluation.significance import holm, paired_test
from tests.benchmarks.study.results import Result


class Difference(NamedTuple):
    """Mean difference against the reference, p of the randomisation test, and p after Holm."""

    value: float
    p: float
    corrected: float


def by_seed(results: Mapping[str, Result], arm: str) -> dict[int, Result]:
    """seed -> result of the cells `ARM/seed-N`."""
    prefix = f"{arm}/seed-"
    return {
        int(name.removeprefix(prefix)): result
        for name, result in results.items()
        if name.startswith(prefix)
    }


def per_query(runs: Mapping[int, Result], seeds: Sequence[int], label: str = "test") -> list[float]:
    """Each query's mean over some seeds."""
    values = np.array([runs[seed]["per_query"][label] for seed in seeds])
    return [float(mean) for mean in values.mean(axis=0)]


def family(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dict[str, Difference]:
    """For each pair of values by query the second less the first; one family of tests."""
    tests = {name: paired_test(first, second) for name, (first, second) in pairs.items()}
    corrected = holm([test.p_randomisation for test in tests.values()])
    return {
        name: Difference(test.difference, test.p_randomisation, p)
        for (name, test), p in zip(tests.items(), corrected, strict=True)
    }


def against(
    reference: Mapping[int, Result], others: Mapping[str, Mapping[int, Result]]
) -> dict[str, Difference]:
    """Each arm less the reference, over the seeds that both have; nothing without a reference.

    The reference itself may be among the others, and is passed over. An arm without seeds (BM25)
    stands under the seed 0 and meets the mean over all of the reference's. A query counts once: its
    values are averaged over the seeds before the test.
    """
    pairs = {}
    for name, runs in others.items():
        if not reference or runs is reference:
            continue
        if set(runs) == {0}:
            pairs[name] = (per_query(reference, list(reference)), per_query(runs, [0]))
        elif shared := sorted(set(reference) & set(runs)):
            pairs[name] = (per_query(reference, shared), per_query(runs, shared))
    return family(pairs)
