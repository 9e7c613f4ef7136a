"""Draws: uniform where they say so, and a function of their key alone."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy import stats

from ance_cli.errors import UsageProblem
from ance_cli.negatives.sampling import (
    draw,
    draw_from_corpus,
    keyed_generator,
    parse_mix,
    split_by_shares,
)

SOURCES = ("ann", "random")


def included_evenly(counts, draws, share):
    """Whether inclusion counts of draws without repeats fit equal chances (p > 0.001).

    Each candidate is in a draw with probability `share`; the counts of one draw add up to a fixed
    number, which takes one degree of freedom and stretches the variance by n / (n - 1).
    """
    counts = np.asarray(counts)
    variance = draws * share * (1 - share) * len(counts) / (len(counts) - 1)
    statistic = ((counts - draws * share) ** 2).sum() / variance
    return stats.chi2.sf(statistic, len(counts) - 1) > 0.001


# ---------------------------------------------------------------- keys


def test_a_generator_depends_on_its_key_alone():
    key = (42, 10_000, "q1", "d1", "ann")
    first = keyed_generator(*key).random(5)
    keyed_generator(1).random(100)
    assert np.array_equal(keyed_generator(*key).random(5), first)
    others = [
        (43, 10_000, "q1", "d1", "ann"),
        (42, 20_000, "q1", "d1", "ann"),
        (42, 10_000, "q2", "d1", "ann"),
        (42, 10_000, "q1", "d2", "ann"),
        (42, 10_000, "q1", "d1", "random"),
        (42, 10_000, "q1d1", "", "ann"),
        (42, 10_000, "", "q1d1", "ann"),
        (4, "210000", "q1", "d1", "ann"),
    ]
    drawn = {tuple(first), *(tuple(keyed_generator(*other).random(5)) for other in others)}
    assert len(drawn) == 9


def test_a_key_draws_the_same_on_every_machine():
    """Raw output of Philox, which no release of numpy may change."""
    assert keyed_generator(42, 10_000, "q1", "d1", "ann").bit_generator.random_raw(2).tolist() == [
        9807572558340649291,
        11629915971348638605,
    ]


# ---------------------------------------------------------------- candidates


@pytest.mark.parametrize("count", [1, 5])
def test_each_candidate_has_the_same_chance(count):
    draws = 5000
    counts = Counter()
    for query in range(draws):
        kept = draw(20, count, "uniform", keyed_generator(42, 0, f"q{query}", "d", "ann"))
        assert len(set(kept.tolist())) == count
        counts.update(kept.tolist())
    assert included_evenly([counts[place] for place in range(20)], draws, count / 20)


def test_pairs_of_candidates_have_the_same_chance():
    draws = 4000
    counts = Counter()
    for query in range(draws):
        kept = draw(6, 2, "uniform", keyed_generator(7, 0, f"q{query}", "d", "ann"))
        counts[tuple(kept.tolist())] += 1
    assert len(counts) == 15
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_the_check_of_even_chances_finds_uneven_ones():
    rng = np.random.default_rng(0)
    chances = np.linspace(0.8, 1.2, 20) / 20
    drawn = Counter(rng.choice(20, 5000, p=chances).tolist())
    assert not included_evenly([drawn[place] for place in range(20)], 5000, 1 / 20)


def test_places_come_in_the_order_of_their_ranks():
    for seed in range(50):
        kept = draw(100, 10, "uniform", keyed_generator(seed)).tolist()
        assert kept == sorted(kept)


def test_top_keeps_the_best_ranked():
    assert draw(100, 4, "top", keyed_generator(1)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sampler", ["uniform", "top"])
@pytest.mark.parametrize("num_candidates", [0, 3, 4])
def test_a_short_list_is_kept_whole(sampler, num_candidates):
    kept = draw(num_candidates, 4, sampler, keyed_generator(1))
    assert kept.tolist() == list(range(num_candidates))
    assert kept.dtype == np.int64


def test_nothing_wanted_is_nothing_drawn():
    assert draw(10, 0, "uniform", keyed_generator(1)).tolist() == []


# ---------------------------------------------------------------- the whole corpus


def test_what_is_banned_is_never_drawn_and_the_rest_evenly():
    banned = {0, 3, 4, 17}
    allowed = [place for place in range(25) if place not in banned]
    counts = Counter()
    for query in range(4000):
        drawn = draw_from_corpus(25, 3, banned, keyed_generator(1, query)).tolist()
        assert len(set(drawn)) == 3
        assert banned.isdisjoint(drawn)
        counts.update(drawn)
    assert included_evenly([counts[place] for place in allowed], 4000, 3 / 21)


@pytest.mark.parametrize(("num_docs", "count"), [(10, 3), (10, 6), (10, 7), (10, 50), (3, 1)])
def test_a_corpus_with_too_few_documents_gives_all_that_may_be(num_docs, count):
    banned = {1, 2, 5, 8}
    drawn = draw_from_corpus(num_docs, count, banned, keyed_generator(1)).tolist()
    allowed = set(range(num_docs)) - banned
    assert len(drawn) == len(set(drawn)) == min(count, len(allowed))
    assert allowed.issuperset(drawn)


def test_a_corpus_of_banned_documents_gives_nothing():
    assert draw_from_corpus(3, 2, {0, 1, 2}, keyed_generator(1)).tolist() == []


# ---------------------------------------------------------------- mixes


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
        ("random:1,ann:0", {"random": 1.0, "ann": 0.0}),
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


def test_a_mix_of_nothing_is_refused():
    with pytest.raises(UsageProblem) as caught:
        parse_mix("ann:0,random:0", SOURCES)
    assert caught.value.what == "--mix 'ann:0,random:0': the shares add up to nothing"


@pytest.mark.parametrize(
    ("count", "share"), list(product([1, 2, 7, 20], [0.0, 0.1, 1 / 3, 0.5, 0.85, 1.0]))
)
def test_the_expected_split_is_the_shares(count, share):
    shares = {"ann": share, "random": 1 - share}
    draws = 600
    found = [split_by_shares(count, shares, keyed_generator(1, n)) for n in range(draws)]
    assert all(sum(split.values()) == count for split in found)
    ann = np.array([split["ann"] for split in found])
    exact = count * share
    assert set(ann.tolist()) <= {int(exact + 1e-9), int(np.ceil(exact - 1e-9))}
    rest = exact - int(exact + 1e-9)
    spread = (max(rest, 0) * (1 - rest) / draws) ** 0.5
    assert abs(ann.mean() - exact) <= 3.5 * spread + 1e-9


def test_whole_shares_are_split_without_chance():
    shares = {"ann": 0.75, "random": 0.25}
    assert split_by_shares(8, shares, keyed_generator(1)) == {"ann": 6, "random": 2}
    thirds = parse_mix("a,b,c", ("a", "b", "c"))
    assert split_by_shares(3, thirds, keyed_generator(1)) == {"a": 1, "b": 1, "c": 1}


def test_one_negative_of_three_sources_follows_the_shares():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    counts = Counter()
    for n in range(4000):
        counts.update(split_by_shares(1, shares, keyed_generator(2, n)))
    expected = [4000 * share for share in shares.values()]
    assert stats.chisquare([counts[name] for name in shares], expected).pvalue > 0.001
