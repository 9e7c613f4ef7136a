"""Draws: uniform where they say so, and a function of their key alone."""

import math
from collections import Counter
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from ance_cli.errors import UsageProblem
from ance_cli.mining.sampling import (
    SAMPLERS,
    Sampler,
    draw_from_corpus,
    keyed_generator,
    order,
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


# ---------------------------------------------------------------- samplers

SCORES = np.array([2.0, 1.5, 1.5, 0.25, -1.0])


def weights_of(sampler, scores, positive):
    """The formula of each sampler, with exponentials as it is written."""
    return {
        "uniform": lambda: [1.0] * len(scores),
        "weighted": lambda: [math.exp(s / sampler.temperature) for s in scores],
        "simans": lambda: [math.exp(-sampler.a * (s - positive - sampler.b) ** 2) for s in scores],
    }[sampler.name]()


def chance_of(drawn, weights):
    """Probability of drawing these places one after the other without replacement."""
    chance, left = 1.0, dict(enumerate(weights))
    for place in drawn:
        chance *= left.pop(place) / (sum(left.values()) + weights[place])
    return chance


DRAWN = [
    Sampler("uniform"),
    Sampler("weighted"),
    Sampler("weighted", temperature=0.4),
    Sampler("simans"),
    Sampler("simans", a=1.0, b=-1.5),
]


@pytest.mark.parametrize("sampler", DRAWN, ids=str)
def test_orders_come_with_the_chances_of_the_formula(sampler):
    """All ordered pairs of first picks are enumerated and their frequencies compared."""
    draws = 6000
    counts = Counter()
    for query in range(draws):
        places = order(SCORES, 1.0, sampler, keyed_generator(42, 0, f"q{query}", "d", "ann"))
        assert sorted(places.tolist()) == [0, 1, 2, 3, 4]
        counts[tuple(places[:2].tolist())] += 1
    weights = weights_of(sampler, SCORES, 1.0)
    expected = {two: draws * chance_of(two, weights) for two in permutations(range(5), 2)}
    assert sum(expected.values()) == pytest.approx(draws)
    rare = [two for two in expected if expected[two] < 5]
    found = [counts[two] for two in expected if two not in rare]
    wanted = [expected[two] for two in expected if two not in rare]
    if rare:
        found.append(sum(counts[two] for two in rare))
        wanted.append(sum(expected[two] for two in rare))
    assert stats.chisquare(found, wanted).pvalue > 0.001


def test_the_comparison_finds_another_formula():
    weights = weights_of(Sampler("weighted"), SCORES, None)
    counts = Counter()
    for query in range(6000):
        places = order(SCORES, None, Sampler("weighted", 0.8), keyed_generator(42, query))
        counts[int(places[0])] += 1
    expected = [6000 * weight / sum(weights) for weight in weights]
    assert stats.chisquare([counts[place] for place in range(5)], expected).pvalue < 1e-6


def test_places_far_down_are_drawn_as_often_as_their_share():
    draws = 5000
    counts = Counter()
    for query in range(draws):
        counts.update(order(np.zeros(20), None, Sampler(), keyed_generator(query))[:5].tolist())
    assert included_evenly([counts[place] for place in range(20)], draws, 5 / 20)


def test_the_check_of_even_chances_finds_uneven_ones():
    rng = np.random.default_rng(0)
    chances = np.linspace(0.8, 1.2, 20) / 20
    drawn = Counter(rng.choice(20, 5000, p=chances).tolist())
    assert not included_evenly([drawn[place] for place in range(20)], 5000, 1 / 20)


def test_top_is_the_order_of_the_ranks():
    assert order(np.array([3.0, 9.0, 1.0]), None, Sampler("top"), keyed_generator(1)).tolist() == [
        0, 1, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 256.0, -1024.0])
def test_only_differences_of_scores_count(shift):
    """Scores are multiples of 1/4, so that the shifted ones are exact."""
    scores = np.arange(40, 0, -1) / 4
    for sampler in DRAWN:
        one = order(scores, 5.0, sampler, keyed_generator(7))
        other = order(scores + shift, 5.0 + shift, sampler, keyed_generator(7))
        assert np.array_equal(one, other)


@pytest.mark.parametrize("level", [310.0, -310.0, 1e4, -1e4])
@pytest.mark.parametrize("sampler", DRAWN, ids=str)
def test_great_scores_do_not_overflow(level, sampler):
    scores = np.linspace(level + 5, level - 5, 50).astype(np.float32)
    with np.errstate(all="raise"):
        places = order(scores, level - 300, sampler, keyed_generator(3))
    assert sorted(places.tolist()) == list(range(50))


def test_a_cold_weighted_draw_is_the_top_and_a_narrow_simans_the_nearest():
    scores = np.array([9.0, 7.0, 4.0, 1.0])
    for seed in range(20):
        rng = keyed_generator(seed)
        assert order(scores, None, Sampler("weighted", 1e-3), rng).tolist() == [0, 1, 2, 3]
        assert order(scores, 5.0, Sampler("simans", a=1e4), rng)[:2].tolist() == [2, 1]
        assert order(scores, 5.0, Sampler("simans", a=1e4, b=3.5), rng)[:2].tolist() == [0, 1]


def test_simans_without_a_positive_s_score_is_refused():
    with pytest.raises(ValueError, match="positive"):
        order(SCORES, None, Sampler("simans"), keyed_generator(1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_empty_list_has_an_empty_order(name):
    assert order(np.zeros(0), 1.0, Sampler(name), keyed_generator(1)).tolist() == []


# ---------------------------------------------------------------- the whole corpus


def test_what_is_banned_is_never_drawn_and_the_rest_evenly():
    banned = {0, 3, 4, 17}
    allowed = [place for place in range(25) if place not in banned]
    counts = Counter()
    for query in range(4000):
        drawn = draw_from_corpus(np.arange(25), 3, banned, keyed_generator(1, query)).tolist()
        assert len(set(drawn)) == 3
        assert banned.isdisjoint(drawn)
        counts.update(drawn)
    assert included_evenly([counts[place] for place in allowed], 4000, 3 / 21)


@pytest.mark.parametrize(("num_docs", "count"), [(10, 3), (10, 6), (10, 7), (10, 50), (3, 1)])
def test_a_corpus_with_too_few_documents_gives_all_that_may_be(num_docs, count):
    banned = {1, 2, 5, 8}
    drawn = draw_from_corpus(np.arange(num_docs), count, banned, keyed_generator(1)).tolist()
    allowed = set(range(num_docs)) - banned
    assert len(drawn) == len(set(drawn)) == min(count, len(allowed))
    assert allowed.issuperset(drawn)


def test_a_corpus_of_banned_documents_gives_nothing():
    assert draw_from_corpus(np.arange(3), 2, {0, 1, 2}, keyed_generator(1)).tolist() == []


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


def test_the_expected_split_of_three_sources_is_the_shares_where_several_are_left_over():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    found = [split_by_shares(3, shares, partial(keyed_generator, 5, n)) for n in range(4000)]
    for source, share in shares.items():
        numbers = [split[source] for split in found]
        assert set(numbers) <= {math.floor(3 * share), math.ceil(3 * share)}
        rest = 3 * share - math.floor(3 * share)
        spread = (rest * (1 - rest) / 4000) ** 0.5
        assert np.mean(numbers) == pytest.approx(3 * share, abs=4 * spread)
    assert all(sum(split.values()) == 3 for split in found)
