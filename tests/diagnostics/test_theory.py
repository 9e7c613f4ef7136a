"""Every formula against enumeration by hand."""

from itertools import product

import numpy as np
import pytest

from ance_cli.diagnostics.theory import (
    HARDEST_MASS,
    batch_probability,
    drawn,
    hardest_of_batch,
    mixture,
    oracle,
    paper_batch_probability,
    second_moment,
    simulated_batches,
    uniform_on,
)

GRADIENTS = np.random.default_rng(3).normal(size=(5, 4)) * np.array([[3], [1], [0.5], [2], [0]])
NORMS = np.linalg.norm(GRADIENTS, axis=1)
WHOLE = GRADIENTS.mean(0)
SAMPLERS = {
    "uniform": uniform_on(np.arange(5), 5),
    "two": uniform_on(np.array([0, 3]), 5),
    "mixed": mixture(uniform_on(np.array([0, 3]), 5), uniform_on(np.arange(5), 5), 0.1),
    "oracle": oracle(NORMS),
}


def exact(p):
    """E[g], E[|g|^2] of g = grad / (N p), by going through the support."""
    mean, second = np.zeros(4), 0.0
    for chance, gradient in zip(p, GRADIENTS, strict=True):
        if chance > 0:
            weighted = gradient / (5 * chance)
            mean, second = mean + chance * weighted, second + chance * (weighted @ weighted)
    return mean, second


@pytest.mark.parametrize("name", SAMPLERS)
def test_second_moment(name):
    assert second_moment(NORMS, SAMPLERS[name]) == pytest.approx(exact(SAMPLERS[name])[1])


def test_which_samplers_are_unbiased():
    for name, p in SAMPLERS.items():
        assert p.sum() == pytest.approx(1)
        assert np.allclose(exact(p)[0], WHOLE) == (name != "two")


def test_nothing_unbiased_varies_less_than_the_oracle():
    least = second_moment(NORMS, SAMPLERS["oracle"])
    assert least == pytest.approx(NORMS.mean() ** 2)
    rng = np.random.default_rng(0)
    others = [*rng.dirichlet(np.ones(5), size=200), SAMPLERS["uniform"], SAMPLERS["mixed"]]
    assert all(second_moment(NORMS, p) >= least for p in others)


def test_the_oracle_where_nothing_is_left_to_learn():
    assert oracle(np.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("other", ["oracle", "mixed"])
def test_estimates_from_draws_are_unbiased(name, other):
    """Their expectation over all pairs of the other sampler's draws is the truth."""
    p, q = SAMPLERS[name], SAMPLERS[other]
    expected = np.zeros(3)
    for docs in map(list, product(np.flatnonzero(q), repeat=2)):
        weights = 1 / (5 * q[docs])
        weighted = weights[:, None] * GRADIENTS[docs]
        inside = p[docs] > 0
        square_sums = [np.square(weighted[part].sum(0)).sum() for part in (inside, ~inside)]
        found = drawn(NORMS[docs] ** 2, weights, 5 * p[docs], *square_sums)
        expected += np.prod(q[docs]) * np.array(found)
    mean, second = exact(p)
    missing = mean - WHOLE
    truth = [second - mean @ mean, missing @ missing, mean @ mean]
    assert expected == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_hardest_of_batch(draws):
    """Against all batches of so many draws from six negatives."""
    ranked = np.array([4, 0, 5, 2, 1, 3])
    rank_of = {place: rank for rank, place in enumerate(ranked.tolist())}
    counts = np.zeros(6)
    for batch in product(range(6), repeat=draws):
        counts[min(batch, key=rank_of.__getitem__)] += 1
    expected = counts / counts.sum()
    kept, mass = [], 0.0
    for place in ranked:
        if mass < HARDEST_MASS:
            kept.append(place)
        mass += expected[place]
    expected[[place for place in range(6) if place not in kept]] = 0
    assert hardest_of_batch(ranked, draws) == pytest.approx(expected / expected.sum())
    assert (draws == 3) == (len(kept) < 6)


def test_a_single_negative_is_the_hardest():
    assert hardest_of_batch(np.array([0]), 31).tolist() == [1.0]


@pytest.mark.parametrize("batch,informative,corpus", [(1, 1, 4), (3, 2, 5), (2, 5, 5), (2, 0, 5)])
def test_the_chance_of_an_informative_negative(batch, informative, corpus):
    batches = list(product(range(corpus), repeat=batch))
    holding = sum(any(doc < informative for doc in docs) for docs in batches)
    assert batch_probability(batch, informative, corpus) == pytest.approx(holding / len(batches))
    paper = paper_batch_probability(batch, informative, corpus)
    assert paper == batch * informative / (corpus * corpus)


def test_simulated_batches_agree_with_the_expression():
    marked = np.zeros(50, bool)
    marked[:4] = True
    found = simulated_batches(marked, 6, 20_000, np.random.default_rng(1))
    assert found == pytest.approx(batch_probability(6, 4, 50), abs=0.015)
    assert simulated_batches(~marked & marked, 6, 10, np.random.default_rng(1)) == 0
