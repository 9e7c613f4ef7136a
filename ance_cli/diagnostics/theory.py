"""The formulas of the paper's analysis (ICLR Sec. 3), on plain arrays.

For one (q, d+) the negatives are the N documents of C \\ D+. A sampler is a distribution p over
them; its gradient estimator is g = 1 / (N p_d) * grad l(d+, d) for a d drawn from p (ICLR Eqn. 5).
The expectation of g is 1 / N times the sum of the gradients over p's support. So g is unbiased only
if the support contains every document whose gradient is not zero.

Shapes: every array is (N,), one entry for each negative, unless its docstring says otherwise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

HARDEST_MASS = 0.99
"""The probability that the support of `hardest_of_batch` covers."""

# ---------------------------------------------------------------- distributions


def uniform_on(places: Positions, total: int) -> Doubles:
    """(total,) the uniform distribution on some of the negatives; all zero if there are none."""
    p = np.zeros(total)
    p[places] = 1 / max(1, len(places))
    return p


def hardest_of_batch(ranked: Positions, draws: int) -> Doubles:
    """The probability that each negative is the hardest of `draws` uniform draws with replacement
    (NCE Neg).

    `ranked` (N,) lists the negatives, highest score first. The r-th is the hardest with probability
    ((N - r + 1) / N)^k - ((N - r) / N)^k. The support is the hardest negatives that have together
    a probability of `HARDEST_MASS`: beyond them p falls as fast as 1 / N^k, too small to divide by.
    """
    total = len(ranked)
    beaten = (1 - np.arange(total + 1) / total) ** draws  # none of the first r was drawn
    by_rank = beaten[:-1] - beaten[1:]
    kept = int(np.searchsorted(1 - beaten[1:], HARDEST_MASS)) + 1
    by_rank[kept:] = 0
    p = np.empty(total)
    p[ranked] = by_rank / by_rank.sum()
    return p


def oracle(norms: Floats) -> Doubles:
    """The distribution of least variance: p in proportion to the gradient's norm (ICLR Eqn. 11).

    Uniform if every gradient is zero.
    """
    exact = norms.astype(np.float64)
    total = exact.sum()
    return exact / total if total > 0 else np.full(len(norms), 1 / len(norms))


def mixture(first: Floats, second: Floats, share: float) -> Doubles:
    """The distribution that draws from `second` with probability `share`, else from `first`."""
    return np.asarray((1 - share) * first + share * second, np.float64)


# ---------------------------------------------------------------- gradients at the encodings


def encoding_norms(
    to_positive: Floats, to_negative: Floats, lengths: Floats, nearness: Floats,
    positive_length: float, query_length: float,
) -> Doubles:  # fmt: skip
    """Norm of the gradient of l(d+, d) at the encodings g(q), g(d+) and g(d): the gradient on the
    last layer, which bounds that of the parameters (ICLR Eqn. 12).

    With a = dl/ds+ (`to_positive`) and b = dl/ds- (`to_negative`) the three parts are a d+ + b d,
    a q and b q. `lengths` |d|^2, `nearness` d . d+, `positive_length` |d+|^2, `query_length` |q|^2.
    """
    a, b = to_positive.astype(np.float64), to_negative.astype(np.float64)
    at_query = a**2 * positive_length + b**2 * lengths + 2 * a * b * nearness
    return np.asarray(np.sqrt(np.maximum(at_query, 0) + (a**2 + b**2) * query_length))


class EncodingSum(NamedTuple):
    """The sum of the gradients at the encodings over some of the negatives."""

    to_positive: float
    """The sum of dl/ds+"""
    squares: float
    """The sum of (dl/ds-)^2"""
    vectors: Doubles
    """(d,) the sum of dl/ds- times the negative's encoding"""

    def without(self, part: EncodingSum) -> EncodingSum:
        """The sum without the negatives of `part`."""
        return EncodingSum(
            self.to_positive - part.to_positive,
            self.squares - part.squares,
            self.vectors - part.vectors,
        )

    def mean_square(self, positive: Floats, query_length: float, total: int) -> float:
        """|1 / N times the sum|^2; `positive` (d,) = d+, `query_length` |q|^2, `total` N.

        Here every document's encoding is a separate parameter, as if the last layer were a table,
        so that the parts of different negatives do not cancel.
        """
        at_query = float(np.square(self.to_positive * positive + self.vectors).sum())
        return (at_query + (self.to_positive**2 + self.squares) * query_length) / total**2


# ---------------------------------------------------------------- the estimator's moments


class Moments(NamedTuple):
    """The moments of an importance-weighted gradient estimator."""

    variance: float
    """Tr(Var(g)), ICLR Eqn. 10"""
    bias: float
    """|E[g] - G|^2, G the gradient over all negatives"""
    mean: float
    """|E[g]|^2"""


def second_moment(norms: Floats, p: Floats) -> float:
    """E[|g|^2] = 1 / N^2 times the sum of |grad l|^2 / p over the support of p (ICLR Eqn. 9)."""
    inside = p > 0
    return float((norms[inside].astype(np.float64) ** 2 / p[inside]).sum()) / len(norms) ** 2


def squared_mean(square_sum: float, sum_square: float, draws: int) -> float:
    """Unbiased estimate of |E[g]|^2 from K >= 2 independent draws of a vector g.

    `square_sum` is the sum of |g|^2, `sum_square` is |sum of g|^2; their difference is the sum of
    the products of different draws (a U-statistic; the estimate may be below zero).
    """
    return (sum_square - square_sum) / (draws * (draws - 1))


def drawn(
    square_norms: Floats,
    weights: Floats,
    densities: Floats,
    inside_sum_square: float,
    outside_sum_square: float,
) -> Moments:
    """Unbiased estimates of a sampler's moments from K >= 2 independent draws of another sampler q.

    A sampler's own draws are not enough: the variance of a uniform sampler comes from negatives
    that it rarely draws. q should draw negatives with large gradients, as `oracle` does. (K,) each:
    `square_norms` |grad l|^2, `weights` 1 / (N q), `densities` N p. `inside_sum_square` is
    |sum of weight * grad l|^2 over the draws inside the support of p, `outside_sum_square` over the
    other draws.
    """
    inside = densities > 0
    draws = len(densities)
    seconds = square_norms[inside] * weights[inside] / densities[inside]
    squares = square_norms * weights**2
    mean = squared_mean(float(squares[inside].sum()), inside_sum_square, draws)
    bias = squared_mean(float(squares[~inside].sum()), outside_sum_square, draws)
    return Moments(float(seconds.sum()) / draws - mean, bias, mean)


# ---------------------------------------------------------------- informative negatives in a batch


def paper_batch_probability(batch: int, informative: int, corpus: int) -> float:
    """b |D-*| / |C|^2, the paper's probability that a batch contains an informative negative (ICLR
    Sec. 3.2)."""
    return batch * informative / corpus**2


def batch_probability(batch: int, informative: int, corpus: int) -> float:
    """1 - (1 - |D-*| / |C|)^b, the probability that b uniform draws with replacement contain at
    least one of D-*."""
    if informative >= corpus:
        return 1.0
    return float(-np.expm1(batch * np.log1p(-informative / corpus)))


def simulated_batches(
    informative: npt.NDArray[np.bool_], batch: int, trials: int, rng: np.random.Generator
) -> float:
    """The share of `trials` batches of `batch` uniform draws that contain an informative entry."""
    places = rng.integers(len(informative), size=(trials, batch))
    return float(informative[places].any(1).mean())
