"""Samplers: in which order the candidates of a pair are wanted, reproducibly.

A sampler turns a ranked candidate list into an order of it, most wanted first; a draw is a prefix
of that order, and whoever refuses a candidate takes the next one. Every order comes from a
generator of its own, keyed by (seed, checkpoint step, query, positive, source), so that one process
or eight, in any sequence, draw the same negatives from the same candidates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.config.sets import SamplerName
from ance_cli.errors import UsageProblem

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
RANDOM = "random"
"""The source that draws from the whole corpus instead of a candidate list."""

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


class _Key(np.random.bit_generator.ISeedSequence):
    """A key as numpy's generators ask for it.

    `Philox(key=...)` is the same generator, but asks the system for entropy first, which takes many
    times as long as all the rest of it and is then thrown away.
    """

    def __init__(self, digest: int) -> None:
        self._digest = digest

    def generate_state(
        self, n_words: int, dtype: npt.DTypeLike = np.uint32
    ) -> npt.NDArray[np.uint32 | np.uint64]:
        words = self._digest.to_bytes(16, "little")
        return np.frombuffer(words, dtype, count=n_words)


def keyed_generator(*key: str | int) -> np.random.Generator:
    """A generator that depends on the key alone (Philox, keyed by a 128-bit hash)."""
    digest = xxhash.xxh3_128_intdigest("\x1f".join(map(str, key)).encode())
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sampler:
    """One of `SAMPLERS` and its settings: `temperature` is of `weighted`, `a`, `b` of `simans`."""

    name: SamplerName = "uniform"
    temperature: float = 1.0
    a: float = 0.5
    b: float = 0.0

    @property
    def needs_scores(self) -> bool:
        return self.name in ("weighted", "simans")

    @property
    def needs_positive(self) -> bool:
        """Whether it compares candidates with the positive's score."""
        return self.name == "simans"


def order(
    scores: Floats, positive_score: float | None, sampler: Sampler, rng: np.random.Generator
) -> Positions:
    """The places of ranked candidates, most wanted first; `scores` (n,) stand in rank order.

    `uniform`: any order, all alike (the paper: one negative drawn uniformly from the ANN top 200,
    ICLR Sec. 5). `top`: by rank. The other two draw one after the other without replacement, each
    time with p_i over the candidates that are left:

    - `weighted`: p_i proportional to exp(s_i / temperature);
    - `simans`: p_i proportional to exp(-a (s_i - s+ - b)^2), s+ the positive's score (SimANS, Zhou
      et al., EMNLP 2022; the released code runs a = 0.5, b = 0). With b > 0 candidates that score
      above the positive by b are the most likely, with b < 0 those that far below it.

    Only `weighted` and `simans` look at scores, and only `simans` at the positive's.
    """
    if sampler.name == "top":
        return np.arange(len(scores), dtype=np.int64)
    if sampler.name == "uniform":
        return rng.permutation(len(scores))
    exact = scores.astype(np.float64)
    if sampler.name == "weighted":
        log_weights = (exact - exact.max(initial=-np.inf)) / sampler.temperature
    else:
        if positive_score is None:
            raise ValueError("simans needs the positive's score")
        log_weights = -sampler.a * (exact - positive_score - sampler.b) ** 2
    return _plackett_luce(log_weights, rng)


def _plackett_luce(log_weights: Floats, rng: np.random.Generator) -> Positions:
    """Draws without replacement, each in proportion to the weights that are left.

    Adding Gumbel noise to the logarithms and sorting gives exactly that (Gumbel top-k), and never
    takes an exponential that could overflow.
    """
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")


def draw_from_corpus(
    corpus: Positions, count: int, banned: set[int], rng: np.random.Generator
) -> Positions:
    """`count` of the document positions in `corpus`, drawn uniformly, without repeats, outside
    `banned`."""
    size = min(len(corpus), count + len(banned))
    drawn = corpus[rng.choice(len(corpus), size, replace=False)]
    allowed = [place for place in drawn.tolist() if place not in banned]
    return np.asarray(allowed[:count], np.int64)


def parse_mix(text: str, sources: tuple[str, ...]) -> dict[str, float]:
    """`bm25:0.5,random:0.5` -> shares that add up to one; a lone name has the whole share."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z0-9]+)\s*(?::\s*([0-9]*\.?[0-9]+))?\s*", part)
        if not match or match[1] not in sources or match[1] in shares:
            raise UsageProblem(
                f"--mix {text!r}: cannot read {part.strip()!r}",
                hint=f"expected shares such as {sources[0]}:0.5,{RANDOM}:0.5; "
                f"the sources here are {', '.join(sources)}",
            )
        shares[match[1]] = float(match[2]) if match[2] else 1.0
    if sum(shares.values()) <= 0:
        raise UsageProblem(f"--mix {text!r}: the shares add up to nothing")
    return normalised(shares)


def normalised(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares in proportion, adding up to one; a source without a share is left out."""
    total = sum(shares.values())
    return {source: share / total for source, share in shares.items() if share > 0}


def split_by_shares(
    count: int, shares: Mapping[str, float], keyed: Callable[[], np.random.Generator]
) -> dict[str, int]:
    """How many of `count` negatives come from each source; `keyed` makes the draw's generator.

    Whole parts are fixed; of what is left over each source gets one more with its remainder as the
    chance (systematic sampling: the remainders laid end to end, cut at u, u + 1, ...), so that the
    expected split is the shares also for a count of one.
    """
    if len(shares) == 1:
        return dict.fromkeys(shares, count)
    exact = np.array([count * share for share in shares.values()])
    whole = np.floor(exact + 1e-9)
    left = count - whole.sum()
    ends = np.minimum(np.cumsum(np.maximum(exact - whole, 0.0)), left)
    ends[-1] = left  # what the sum would be without rounding
    cuts = np.ceil(np.concatenate([[0.0], ends]) - keyed().random())
    split = whole + np.diff(cuts)
    return {source: int(number) for source, number in zip(shares, split, strict=True)}
