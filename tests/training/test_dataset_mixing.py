"""The order of pairs under shares: its properties, and a twin of the rule in exact arithmetic."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from ance_cli.errors import BadInput
from ance_cli.mining.sampling import keyed_generator
from ance_cli.training.dataset_mixing import mixed_order, take_turns

SIZES_AND_SHARES = [
    ((30, 20), (0.6, 0.4)),
    ((40, 7), (0.5, 0.5)),  # the second wraps around about three times in an epoch
    ((5, 90), (0.9, 0.1)),
    ((25, 25, 25), (1 / 3, 1 / 3, 1 / 3)),
    ((3, 50, 11, 20), (0.4, 0.3, 0.2, 0.1)),
    ((60,), (1.0,)),
    ((30, 30), (1.0, 0.0)),
    ((10, 20), (2, 1)),  # any weights
]


def owners_of(sizes, seed=0):
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(owner)


def deviation(turns, shares):
    """How far the count of any dataset is from share x length, at worst, over all prefixes."""
    shares = np.asarray(shares) / sum(shares)
    had = np.cumsum(turns[:, None] == np.arange(len(shares)), axis=0)
    return np.abs(had - shares * np.arange(1, len(turns) + 1)[:, None]).max()


@pytest.mark.parametrize(("sizes", "shares"), SIZES_AND_SHARES)
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_prefix_of_an_epoch_has_the_shares(sizes, shares, epoch):
    owner = owners_of(sizes)
    order = mixed_order(owner, shares, 3, epoch)
    assert order.dtype == np.int64 and order.shape == owner.shape
    assert deviation(owner[order], shares) < 1


def test_the_bound_holds_for_many_datasets_of_any_shares():
    rng = np.random.default_rng(1)
    for _ in range(60):
        shares = np.maximum(rng.dirichlet(np.full(int(rng.integers(2, 14)), 0.5)), 1e-3)
        shares /= shares.sum()
        bound = 1 - 1 / (2 * len(shares) - 2)
        assert deviation(take_turns(400, tuple(shares.tolist())), shares) <= bound + 1e-5


def twin_of_the_rule(length, shares):
    """Among those that lag enough, the first whose turn would come too late; exact numbers."""
    slack = Fraction(1, 2 * len(shares) - 2)
    turns = []
    for place in range(1, length + 1):
        had = Counter(turns)
        lagging = [d for d, share in enumerate(shares) if share * place - had[d] >= slack]
        turns.append(min(lagging, key=lambda d: (had[d] + 1 - slack) / shares[d]))
    return turns


@pytest.mark.parametrize(
    "eighths", [(4, 4), (7, 1), (3, 5), (1, 3, 4), (2, 2, 4), (1, 1, 1, 5), (1, 1, 2, 2, 2)]
)
def test_turns_against_the_twin(eighths):
    exact = twin_of_the_rule(200, [Fraction(part, 8) for part in eighths])
    assert take_turns(200, tuple(part / 8 for part in eighths)).tolist() == exact


def visits(sizes, shares, epochs, seed=3):
    """What each dataset brings over the epochs, in order."""
    owner = owners_of(sizes)
    job = np.concatenate([mixed_order(owner, shares, seed, epoch) for epoch in range(epochs)])
    return owner, [job[owner[job] == dataset] for dataset in range(len(sizes))]


@pytest.mark.parametrize(("sizes", "shares"), SIZES_AND_SHARES)
def test_a_dataset_brings_whole_permutations_across_epochs(sizes, shares):
    owner, brought = visits(sizes, shares, 6)
    for dataset, pairs in enumerate(brought):
        members = np.flatnonzero(owner == dataset)
        for lap, start in enumerate(range(0, len(pairs), sizes[dataset])):
            expected = keyed_generator(3, "order", lap, dataset).permutation(members)
            found = pairs[start : start + sizes[dataset]]
            assert found.tolist() == expected[: len(found)].tolist()


def test_every_pair_is_seen_over_the_epochs():
    sizes = (20, 180)
    _, brought = visits(sizes, (0.9, 0.1), 9)  # 20 of its 180 pairs an epoch
    assert len(brought[1]) == 180 and len(set(brought[1].tolist())) == 180
    assert set(Counter(brought[0].tolist()).values()) == {81}  # 180 of its 20 pairs an epoch


def test_shares_by_size_visit_each_pair_once_an_epoch():
    sizes = (17, 5, 31)
    owner = owners_of(sizes)
    for epoch in range(3):
        order = mixed_order(owner, [size / sum(sizes) for size in sizes], 3, epoch)
        assert sorted(order.tolist()) == list(range(len(owner)))


def test_the_order_is_a_function_of_its_arguments_alone():
    owner, shares = owners_of((13, 40, 8)), (0.2, 0.5, 0.3)
    whole = [mixed_order(owner, shares, 3, epoch) for epoch in range(4)]
    take_turns.cache_clear()
    for epoch in (3, 1, 2, 0):
        assert np.array_equal(mixed_order(owner, np.array(shares), 3, epoch), whole[epoch])
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(mixed_order(owner, shares, 4, 0), whole[0])


def test_a_share_without_pairs_is_refused():
    with pytest.raises(BadInput) as caught:
        mixed_order(np.zeros(5, np.int16), (0.5, 0.5), 3, 0)
    assert "dataset 1 (from 0) has a share of the training, and no pair" in caught.value.what
