"""Whether two devices, number formats or libraries computed the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ance_cli.retrieval.exact import Found

Floats = npt.NDArray[np.float32]

_NEAR = 4e-6
"""Scores whose difference is below this share of the greatest one count as equal: two libraries add
up the products of an inner product in another order."""


def cosines(one: Floats, other: Floats) -> Floats:
    """(n,) the cosine of each row of one array with the same row of the other."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Floats = (one * other).sum(1) / norms
    return found


def same_ranking(one: Found, other: Found) -> bool:
    """Whether two results agree: scores to rounding, positions wherever the scores are no tie."""
    (D, I), (E, J) = one, other  # noqa: E741
    if D.shape != E.shape or not np.array_equal(I < 0, J < 0):
        return False
    there = I >= 0
    scale = float(np.abs(E[there]).max(initial=1.0))
    close = np.abs(np.where(there, D, 0) - np.where(there, E, 0)) <= _NEAR * scale
    if not close.all():
        return False
    gaps = np.full((len(E), E.shape[1] + 1), np.inf)
    gaps[:, 1:-1] = np.where(there[:, 1:], E[:, :-1] - np.where(there[:, 1:], E[:, 1:], 0), np.inf)
    # what follows the last place is not known, so it may tie with it
    gaps[:, -1] = 0.0
    is_tie = np.minimum(gaps[:, :-1], gaps[:, 1:]) <= _NEAR * scale
    return bool(((I == J) | is_tie | ~there).all())
