"""Paired comparisons of cells over their queries, with Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ance_cli.evaluation.significance import holm, paired_test
from benchmarks.study.results import Result


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


def family(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Difference]:
    """For each pair of values by query the second less the first; one family of tests.

    `groups` has the number of each query's group, where queries are not independent: the test then
    flips the signs of whole groups, which is the test over the sums of their differences.
    """
    values, p_values = {}, []
    for name, (first, second) in pairs.items():
        difference = np.subtract(second, first)
        values[name] = float(difference.mean())
        if groups:
            difference = np.bincount(groups[name], weights=difference)
        test = paired_test([0.0] * len(difference), difference.tolist())
        p_values.append(test.p_randomisation)
    return {
        name: Difference(value, p, corrected)
        for (name, value), p, corrected in zip(
            values.items(), p_values, holm(p_values), strict=True
        )
    }


def shared_seeds(
    first: Mapping[int, Result], second: Mapping[int, Result]
) -> tuple[list[int], list[int]]:
    """The seeds over which either of two arms is averaged when they meet: those that both have.

    An arm without seeds (BM25) has seed 0 and is compared with the mean over the other's seeds.
    """
    if {0} in (set(first), set(second)):
        return sorted(first), sorted(second)
    both = sorted(set(first) & set(second))
    return both, both


def against(
    reference: Mapping[int, Result], others: Mapping[str, Mapping[int, Result]]
) -> dict[str, Difference]:
    """Each arm less the reference, over the seeds that both have; nothing without a reference.

    Results of the reference itself may be among the others, and are skipped. A query counts
    once: its values are averaged over the seeds before the test.
    """
    pairs = {}
    for name, runs in others.items():
        own, theirs = shared_seeds(reference, runs)
        if own and theirs and [reference[s] for s in own] != [runs[s] for s in theirs]:
            pairs[name] = (per_query(reference, own), per_query(runs, theirs))
    return family(pairs)
