"""Rules on ranks and scores, named as in sentence-transformers' `mine_hard_negatives`.

A rule is a setting of `DrawRules`; it is active if the setting differs from its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.config import DrawRules
from ance_cli.errors import UsageProblem
from ance_cli.mining.mix import RANDOM
from ance_cli.mining.sampling import SAMPLERS, Floats, Positions

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Offered:
    """Candidates of one query."""

    ranks: Positions | None
    """(n,) from 1 in the raw list, before positives are removed; None if the source has no
    ranking."""
    scores: npt.NDArray[np.float64]
    """(n,)"""
    lowest_positive: float | None
    """The lowest score of the query's positives."""

    @property
    def limit(self) -> float:
        """The score that the margins are measured from."""
        if self.lowest_positive is None:
            raise ValueError("a margin needs the score of a positive")
        return self.lowest_positive


@dataclass(frozen=True)
class Rule:
    """One rule: which candidates it lets pass at a given limit, and what it reads."""

    passes: Callable[[Offered, float], Mask]
    """(candidates, the setting's value) -> (n,) which candidates pass"""
    needs_scores: bool = True
    needs_positive: bool = False
    """Whether it compares candidates with the positives' scores."""


def _range_min(offered: Offered, rank: float) -> Mask:
    return np.asarray(offered.ranks) > rank


def _range_max(offered: Offered, rank: float) -> Mask:
    return np.asarray(offered.ranks) <= rank


def _max_score(offered: Offered, score: float) -> Mask:
    return offered.scores <= score


def _min_score(offered: Offered, score: float) -> Mask:
    return offered.scores >= score


def _absolute_margin(offered: Offered, margin: float) -> Mask:
    """s- <= s+ - margin"""
    return offered.scores <= offered.limit - margin


def _relative_margin(offered: Offered, margin: float) -> Mask:
    """s- <= s+ - |s+| margin: below the positive, whatever the sign of the positive's score."""
    return offered.scores <= offered.limit - abs(offered.limit) * margin


RULES: Mapping[str, Rule] = {
    "range_min": Rule(_range_min, needs_scores=False),
    "range_max": Rule(_range_max, needs_scores=False),
    "max_score": Rule(_max_score),
    "min_score": Rule(_min_score),
    "absolute_margin": Rule(_absolute_margin, needs_positive=True),
    "relative_margin": Rule(_relative_margin, needs_positive=True),
}
"""Field of `DrawRules` -> its rule, in the order in which they are applied."""


def active_rules(config: DrawRules) -> dict[str, Rule]:
    """The rules that the config sets."""
    return {
        name: rule
        for name, rule in RULES.items()
        if getattr(config, name) != getattr(DrawRules, name)
    }


def passing(
    config: DrawRules, ranks: Positions | None, scores: Floats, lowest_positive: float | None
) -> tuple[Mask, dict[str, int]]:
    """(n,) which candidates pass every rule, and how many candidates each active rule refuses.

    A candidate that several rules refuse counts for the first of them. Without `ranks` the rules on
    ranks do not apply.
    """
    # float64: a limit would otherwise be rounded to the scores' type
    offered = Offered(ranks, scores.astype(np.float64), lowest_positive)
    left = np.ones(len(scores), bool)
    refused = {}
    for name, rule in active_rules(config).items():
        if ranks is not None or rule.needs_scores:
            passes = rule.passes(offered, getattr(config, name))
            refused[name] = int((left & ~passes).sum())
            left &= passes
    return left, refused


# ---------------------------------------------------------------- what a config needs


def check_scores(config: DrawRules, unscored: Sequence[str], hint: str) -> None:
    """Raise `UsageProblem` if the config needs scores and the sources `unscored` have none.

    A sampler orders only the ranked sources, so a sampler that needs scores can be combined with an
    unscored `random`.
    """
    ranked = [source for source in unscored if source != RANDOM]
    by_sampler = SAMPLERS[config.sampler].needs_scores
    by_rule = any(rule.needs_scores for rule in active_rules(config).values())
    for what, sources in (
        (f"--sampler {config.sampler}", ranked if by_sampler else []),
        ("a limit on scores", unscored if by_rule else []),
    ):
        if sources:
            raise UsageProblem(
                f"{what} needs scores, and the source {sources[0]} has none", hint=hint
            )


def check_positive_scores(config: DrawRules, hint: str) -> None:
    """Raise `UsageProblem` if the config compares candidates with the positive's score, for a
    search that does not return it."""
    for what, needs in (
        (f"--sampler {config.sampler} compares", SAMPLERS[config.sampler].needs_positive),
        ("a margin compares", any(rule.needs_positive for rule in active_rules(config).values())),
    ):
        if needs:
            raise UsageProblem(
                f"{what} with the positive's score, which a search of an index does not return",
                hint=hint,
            )
