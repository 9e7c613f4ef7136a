"""Mixes: reading shares, and splitting a count by them."""

import math
from collections import Counter
from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy import stats

from ance_cli.errors import UsageProblem
from ance_cli.mining.mix import Mix, parse_mix, split_by_shares
from ance_cli.mining.sampling import keyed_generator

SOURCES = ("ann", "random")


def test_the_other_sources_share_the_part_of_an_absent_one():
    mix = Mix.without({"ann": 0.25, "previous": 0.5, "random": 0.25}, ("previous",))
    assert mix == Mix({"ann": 0.5, "random": 0.5}, ("previous",))


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("ann", {"ann": 1.0}),
        ("random", {"random": 1.0}),
        ("ann:0.3", {"ann": 1.0}),
        ("ann:0.5,random:0.5", {"ann": 0.5, "random": 0.5}),
        (" ann : 3 , random : 1 ", {"ann": 0.75, "random": 0.25}),
        ("ann,random", {"ann": 0.5, "random": 0.5}),
        ("ann:.2,random:.8", {"ann": 0.2, "random": 0.8}),
        ("random:1,ann:0", {"random": 1.0}),
    ],
)
def test_shares_add_up_to_one(text, shares):
    assert parse_mix(text, SOURCES) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("bm25", "bm25"),
        ("ann:0.5,bm25:0.5", "bm25:0.5"),
        ("ann:0.5,ann:0.5", "ann:0.5"),
        ("ann:half", "ann:half"),
        ("ann:-1,random:2", "ann:-1"),
        ("ann:1e3", "ann:1e3"),
        ("ann random", "ann random"),
        ("ann,", ""),
        ("", ""),
    ],
)
def test_a_mix_that_cannot_be_read_is_refused(text, part):
    with pytest.raises(UsageProblem) as caught:
        parse_mix(text, SOURCES)
    assert caught.value.what == f"--mix {text!r}: cannot read {part!r}"
    assert caught.value.hint == (
        "expected shares such as ann:0.5,random:0.5; the sources here are ann, random"
    )


def test_a_mix_whose_shares_are_0_is_refused():
    with pytest.raises(UsageProblem) as caught:
        parse_mix("ann:0,random:0", SOURCES)
    assert caught.value.what == "--mix 'ann:0,random:0': the shares add up to 0"


@pytest.mark.parametrize(
    ("count", "share"), list(product([1, 2, 7, 20], [0.0, 0.1, 1 / 3, 0.5, 0.85, 1.0]))
)
def test_the_expected_split_is_the_shares(count, share):
    shares = {"ann": share, "random": 1 - share}
    draws = 600
    found = [split_by_shares(count, shares, partial(keyed_generator, 1, n)) for n in range(draws)]
    assert all(sum(split.values()) == count for split in found)
    ann = np.array([split["ann"] for split in found])
    exact = count * share
    assert set(ann.tolist()) <= {int(exact + 1e-9), int(np.ceil(exact - 1e-9))}
    rest = exact - int(exact + 1e-9)
    spread = (max(rest, 0) * (1 - rest) / draws) ** 0.5
    assert abs(ann.mean() - exact) <= 3.5 * spread + 1e-9


def test_whole_shares_are_split_without_chance():
    shares = {"ann": 0.75, "random": 0.25}
    assert split_by_shares(8, shares, partial(keyed_generator, 1)) == {"ann": 6, "random": 2}
    thirds = parse_mix("a,b,c", ("a", "b", "c"))
    assert split_by_shares(3, thirds, partial(keyed_generator, 1)) == {"a": 1, "b": 1, "c": 1}


def test_one_negative_of_three_sources_follows_the_shares():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    counts = Counter()
    for n in range(4000):
        counts.update(split_by_shares(1, shares, partial(keyed_generator, 2, n)))
    expected = [4000 * share for share in shares.values()]
    assert stats.chisquare([counts[name] for name in shares], expected).pvalue > 0.001


def test_the_expected_split_of_three_sources_is_the_shares_if_several_remain():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    found = [split_by_shares(3, shares, partial(keyed_generator, 5, n)) for n in range(4000)]
    for source, share in shares.items():
        numbers = [split[source] for split in found]
        assert set(numbers) <= {math.floor(3 * share), math.ceil(3 * share)}
        rest = 3 * share - math.floor(3 * share)
        spread = (rest * (1 - rest) / 4000) ** 0.5
        assert np.mean(numbers) == pytest.approx(3 * share, abs=4 * spread)
    assert all(sum(split.values()) == 3 for split in found)
