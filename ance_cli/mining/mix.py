"""The mix: from which sources negatives come, and in which shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ance_cli.errors import UsageProblem

ANN, BM25, RUN, PREVIOUS, LOOKAHEAD = "ann", "bm25", "run", "previous", "lookahead"
GIVEN = "given"
"""The ranked sources: the model's own ranking, BM25's, a TREC run, the candidates of an earlier
model, the neighbours of the positive, and the negatives that came with the data."""
RANDOM = "random"
"""The source that draws from the whole corpus instead of from a ranking."""


@dataclass(frozen=True)
class Mix:
    """The sources of one call."""

    shares: Mapping[str, float]
    """source -> share of the negatives; the shares add up to 1."""
    absent: tuple[str, ...] = ()
    """Sources that --mix names but that have nothing to draw from; the others share their part."""

    @classmethod
    def without(cls, shares: Mapping[str, float], absent: tuple[str, ...]) -> Mix:
        """The mix of the sources that are not absent."""
        left = {source: share for source, share in shares.items() if source not in absent}
        return cls(normalised(left), absent)


def parse_mix(text: str, sources: tuple[str, ...]) -> dict[str, float]:
    """`bm25:0.5,random:0.5` -> shares that add up to 1; a single name gets the whole share.

    Raises `UsageProblem` for a source that is not in `sources`, and if every share is 0.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z0-9]+)\s*(?::\s*([0-9]{0,9}\.?[0-9]{1,9}))?\s*", part)
        if not match or match[1] not in sources or match[1] in shares:
            raise UsageProblem(
                f"--mix {text!r}: cannot read {part.strip()!r}",
                hint=f"expected shares such as {sources[0]}:0.5,{RANDOM}:0.5; "
                f"the sources here are {', '.join(sources)}",
            )
        shares[match[1]] = float(match[2]) if match[2] else 1.0
    if sum(shares.values()) <= 0:
        raise UsageProblem(f"--mix {text!r}: the shares add up to 0")
    return normalised(shares)


def normalised(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares scaled so that they add up to 1, without the sources whose share is 0."""
    total = sum(shares.values())
    return {source: share / total for source, share in shares.items() if share > 0}


def split_by_shares(
    count: int, shares: Mapping[str, float], keyed: Callable[[], np.random.Generator]
) -> dict[str, int]:
    """How many of `count` negatives come from each source; `keyed` makes the draw's generator.

    Each source gets the whole part of `count` times its share. The negatives that remain are
    assigned by systematic sampling, with the fractional parts as the chances: the fractions are
    laid end to end and cut at u, u + 1, ..., so that the expected split equals the shares even if
    `count` is 1.
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
