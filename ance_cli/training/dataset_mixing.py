"""The order of the pairs of a merged dataset, in which each dataset has its share of the training.

The shares decide which dataset brings the next pair; the dataset's own permutations decide which
pair that is. Both are functions of (seed, epoch, sizes, shares), so a resumed run has the order of
an uninterrupted one.
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
"""Far above the rounding error of share x place, far below any share that can matter."""


def mixed_order(
    owner_of_pair: npt.NDArray[np.integer],
    shares: Sequence[float] | npt.NDArray[np.floating],
    seed: int,
    epoch: int,
) -> npt.NDArray[np.int64]:
    """The pairs that one epoch visits, (pairs,) positions in `owner_of_pair`.

    `owner_of_pair` (pairs,) is the number of each pair's dataset; `shares` (datasets,) are weights
    of at least 0, of any sum. Of the first n pairs, share x n belong to a dataset, with an error
    below 1. A dataset brings its pairs in its own permutations, one after the other. If it has
    fewer pairs than its part of an epoch, it begins its next permutation within the epoch; if it
    has more, the next epoch continues the permutation. So every pair is visited, unless its
    dataset's part of an epoch is less than one pair.

    Raises `BadInput` if a dataset with a share has no pair.
    """
    total = math.fsum(shares)
    turns = take_turns(len(owner_of_pair), tuple(float(share) / total for share in shares))
    order = np.empty(len(owner_of_pair), np.int64)
    for dataset in np.flatnonzero(shares).tolist():
        members = np.flatnonzero(owner_of_pair == dataset)
        if not len(members):
            raise BadInput(
                f"dataset {dataset} (from 0) has a share of the training, and no pair",
                hint="remove the dataset, or give it a share of 0",
            )
        places = np.flatnonzero(turns == dataset)
        # every epoch has the same turns, so each earlier epoch brought this many pairs
        order[places] = _stretch(members, epoch * len(places), len(places), seed, dataset)
    return order


def _stretch(
    members: npt.NDArray[np.int64], start: int, count: int, seed: int, dataset: int
) -> npt.NDArray[np.int64]:
    """Places `start` to `start + count` of the endless sequence of permutations of `members`."""
    first, offset = divmod(start, len(members))
    last = (start + count) // len(members)
    laps = [
        keyed_generator(seed, "order", lap, dataset).permutation(members)
        for lap in range(first, last + 1)
    ]
    return np.concatenate(laps)[offset : offset + count]


@lru_cache(maxsize=1)
def take_turns(length: int, shares: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """The dataset of each of `length` places, (length,) positions in `shares`, which add up to one.

    After every place each dataset has had share x place turns, with an error of at most
    1 - 1/(2D - 2) for D datasets with a share; no rule has a smaller bound in general. The rule: of
    the datasets that lag by at least 1/(2D - 2) turns, take the dataset that would be the first to
    lag by more than the bound. (R. Tijdeman, The chairman assignment problem, Discrete Mathematics
    32, 1980. To take the dataset that lags most is not enough: with many datasets, others then fall
    behind by more than a turn.)
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
