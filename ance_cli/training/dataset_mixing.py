"""The order of pairs where a dataset is merged from several, each with its share of the training.

Whose turn it is follows from the shares alone; which of its pairs a dataset then brings, from its
own permutations. Both are functions of (seed, epoch, sizes, shares), so that a resumed run sees the
order of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ance_cli.errors import BadInput
from ance_cli.mining.sampling import keyed_generator

_TOLERANCE = 1e-6
"""Far above the rounding of share x place, far below any share that can matter."""


def mixed_order(
    owner_of_pair: npt.NDArray[np.integer],
    shares: Sequence[float] | npt.NDArray[np.floating],
    seed: int,
    epoch: int,
) -> npt.NDArray[np.int64]:
    """The pairs that one epoch visits, (pairs,) positions in `owner_of_pair`.

    `owner_of_pair` (pairs,) numbers the dataset of each pair, `shares` (datasets,) are weights from
    0 on, of any sum. Among the first n pairs those of a dataset number share x n, give or take less
    than one. A dataset brings its pairs in permutations of its own, one after the other: with fewer
    pairs than its part of an epoch it begins the next permutation within the epoch, with more it
    goes on in the next epoch where this one left off. So every pair of a dataset comes, unless its
    part of an epoch is less than one pair.

    Raises `BadInput` where a dataset with a share has no pair.
    """
    total = math.fsum(shares)
    turns = take_turns(len(owner_of_pair), tuple(float(share) / total for share in shares))
    order = np.empty(len(owner_of_pair), np.int64)
    for dataset in np.flatnonzero(shares).tolist():
        members = np.flatnonzero(owner_of_pair == dataset)
        if not len(members):
            raise BadInput(
                f"dataset {dataset} (from 0) has a share of the training, and no pair to bring",
                hint="drop it, or give it a share of 0",
            )
        places = np.flatnonzero(turns == dataset)
        # every epoch has the same turns, so that many pairs were brought in each one before
        order[places] = _stretch(members, epoch * len(places), len(places), seed, dataset)
    return order


def _stretch(
    members: npt.NDArray[np.int64], start: int, count: int, seed: int, dataset: int
) -> npt.NDArray[np.int64]:
    """Places `start` to `start + count` of the endless row of permutations of `members`."""
    first, offset = divmod(start, len(members))
    last = (start + count) // len(members)
    laps = [
        keyed_generator(seed, "order", lap, dataset).permutation(members)
        for lap in range(first, last + 1)
    ]
    return np.concatenate(laps)[offset : offset + count]


@lru_cache(maxsize=1)
def take_turns(length: int, shares: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Whose turn each of `length` places is, (length,) positions in `shares`, which add up to one.

    At every place each dataset has had share x place turns, give or take 1 - 1/(2D - 2), where D
    datasets have a share; no rule does better in general. The rule: of the datasets that lag by at
    least 1/(2D - 2) turns, the one that would be the first to lag by more than the bound. (R.
    Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980. The one that lags most
    is not enough: with many datasets it lets others fall behind by more than a turn.)
    """
    sharing = [(number, share) for number, share in enumerate(shares) if share > 0]
    slack = 1 / max(2 * len(sharing) - 2, 1)
    had = [0] * len(shares)
    turns = np.empty(length, np.int64)
    for place in range(1, length + 1):
        next_one, earliest = -1, np.inf
        for number, share in sharing:
            if share * place - had[number] >= slack - _TOLERANCE:
                deadline = (had[number] + 1 - slack) / share
                if deadline < earliest:
                    next_one, earliest = number, deadline
        turns[place - 1] = next_one
        had[next_one] += 1
    turns.flags.writeable = False
    return turns
