"""Drawing negatives from ranked candidates, reproducibly.

Every draw comes from a generator of its own, keyed by (seed, checkpoint step, query, positive,
source), so that one process or eight, in any order, draw the same negatives from the same
candidates.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.errors import UsageProblem

SAMPLERS = ("uniform", "top")
RANDOM = "random"
"""The source that draws from the whole corpus instead of a candidate list."""

Places = npt.NDArray[np.int64]


def keyed_generator(*key: str | int) -> np.random.Generator:
    """A generator that depends on the key alone (Philox, keyed by a 128-bit hash)."""
    digest = xxhash.xxh3_128_intdigest("\x1f".join(map(str, key)).encode())
    return np.random.Generator(np.random.Philox(key=digest))


def draw(num_candidates: int, count: int, sampler: str, rng: np.random.Generator) -> Places:
    """Which of `num_candidates` ranked candidates to keep: `count` places, ascending by rank.

    `uniform` gives each candidate the same chance, without repeats (the paper: one negative drawn
    uniformly from the ANN top 200, ICLR Sec. 5); `top` keeps the best-ranked. Fewer candidates than
    `count` are all kept.
    """
    if num_candidates <= count or sampler == "top":
        return np.arange(min(count, num_candidates), dtype=np.int64)
    return np.sort(rng.choice(num_candidates, count, replace=False))


def draw_from_corpus(
    num_docs: int, count: int, banned: set[int], rng: np.random.Generator
) -> Places:
    """`count` document positions drawn uniformly, without repeats, outside `banned`."""
    size = min(num_docs, count + len(banned))
    drawn = rng.choice(num_docs, size, replace=False)
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
    total = sum(shares.values())
    if total <= 0:
        raise UsageProblem(f"--mix {text!r}: the shares add up to nothing")
    return {source: share / total for source, share in shares.items()}


def split_by_shares(
    count: int, shares: dict[str, float], rng: np.random.Generator
) -> dict[str, int]:
    """How many of `count` negatives come from each source.

    Whole parts are fixed; what is left over goes to sources drawn with their remainders as odds,
    so that the expected split is the shares also for a count of one.
    """
    exact = {source: count * share for source, share in shares.items()}
    counts = {source: int(value + 1e-9) for source, value in exact.items()}
    left = count - sum(counts.values())
    if left:
        names = list(shares)
        rest = np.array([max(exact[name] - counts[name], 0.0) for name in names])
        chosen = rng.choice(len(names), left, replace=False, p=rest / rest.sum())
        for place in np.atleast_1d(chosen):
            counts[names[int(place)]] += 1
    return counts
