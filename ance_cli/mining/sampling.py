"""Samplers: the order in which a pair takes candidates, reproducibly.

A sampler orders a ranked candidate list, the most wanted candidate first. A draw takes a prefix of
that order, and if a candidate is refused, the draw takes the next one. Each order has its own
random generator, keyed by (seed, checkpoint step, query, positive, source), so that any number of
processes, in any sequence, draw the same negatives from the same candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.config import DrawRules
from ance_cli.config.sets import SamplerName

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


class _Key(np.random.bit_generator.ISeedSequence):
    """A key in the form that numpy's generators read.

    `Philox(key=...)` makes the same generator, but first reads entropy from the system, which takes
    many times as long as everything else and is then discarded.
    """

    def __init__(self, digest: int) -> None:
        self._digest = digest

    def generate_state(
        self, n_words: int, dtype: npt.DTypeLike = np.uint32
    ) -> npt.NDArray[np.uint32 | np.uint64]:
        words = self._digest.to_bytes(16, "little")
        return np.frombuffer(words, dtype, count=n_words)


def keyed_generator(*key: str | int) -> np.random.Generator:
    """A generator that depends only on the key (Philox, keyed by a 128-bit hash)."""
    digest = xxhash.xxh3_128_intdigest("\x1f".join(map(str, key)).encode())
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]


# ---------------------------------------------------------------- samplers


@dataclass(frozen=True)
class Sampler:
    """One sampler: its order, and which scores it reads."""

    order: Callable[[Floats, float | None, DrawRules, np.random.Generator], Positions]
    """(candidates' scores by rank, the positive's score, settings, generator) -> places, the most
    wanted candidate first."""
    needs_scores: bool = False
    needs_positive: bool = False
    """Whether it compares candidates with the positive's score."""


def _uniform(
    scores: Floats, positive: float | None, rules: DrawRules, rng: np.random.Generator
) -> Positions:
    """Every order with the same chance (the paper: one negative drawn uniformly from the ANN top
    200, ICLR Sec. 5)."""
    return rng.permutation(len(scores))


def _top(
    scores: Floats, positive: float | None, rules: DrawRules, rng: np.random.Generator
) -> Positions:
    """By rank."""
    return np.arange(len(scores), dtype=np.int64)


def _weighted(
    scores: Floats, positive: float | None, rules: DrawRules, rng: np.random.Generator
) -> Positions:
    """Draws without replacement: p_i proportional to exp(s_i / temperature)."""
    exact = scores.astype(np.float64)
    log_weights = (exact - exact.max(initial=-np.inf)) / rules.sampler_temperature
    return _plackett_luce(log_weights, rng)


def _simans(
    scores: Floats, positive: float | None, rules: DrawRules, rng: np.random.Generator
) -> Positions:
    """Draws without replacement: p_i proportional to exp(-a (s_i - s+ - b)^2), s+ the positive's
    score (SimANS, Zhou et al., EMNLP 2022; the released code runs a = 0.5, b = 0).

    b > 0 prefers candidates that score b above the positive, b < 0 those that score -b below it.
    """
    if positive is None:
        raise ValueError("simans needs the positive's score")
    exact = scores.astype(np.float64)
    return _plackett_luce(-rules.simans_a * (exact - positive - rules.simans_b) ** 2, rng)


SAMPLERS: Mapping[SamplerName, Sampler] = {
    "uniform": Sampler(_uniform),
    "top": Sampler(_top),
    "weighted": Sampler(_weighted, needs_scores=True),
    "simans": Sampler(_simans, needs_scores=True, needs_positive=True),
}


def order(
    scores: Floats, positive_score: float | None, rules: DrawRules, rng: np.random.Generator
) -> Positions:
    """The places of ranked candidates in the order of `rules.sampler`, the most wanted first.

    `scores` (n,) are sorted by rank; only `weighted` and `simans` read them.
    """
    return SAMPLERS[rules.sampler].order(scores, positive_score, rules, rng)


def _plackett_luce(log_weights: Floats, rng: np.random.Generator) -> Positions:
    """Draws one candidate after the other without replacement, in proportion to the weights of
    those that are left.

    Adding Gumbel noise to the logarithms and sorting gives exactly this distribution (Gumbel
    top-k), and never takes an exponential that could overflow.
    """
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")


def draw_from_corpus(
    corpus: Positions,
    count: int,
    banned: Set[int],
    rng: np.random.Generator,
    seen: Set[int] = frozenset(),
) -> Positions:
    """Draw `count` document positions from `corpus` uniformly, without repeats, skipping `banned`
    and `seen`, which have no document in common."""
    size = min(len(corpus), count + len(banned) + len(seen))
    drawn = corpus[rng.choice(len(corpus), size, replace=False)]
    allowed = [place for place in drawn.tolist() if place not in banned and place not in seen]
    return np.asarray(allowed[:count], np.int64)
