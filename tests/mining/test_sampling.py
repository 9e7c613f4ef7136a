"""Draws: their distributions, and that they depend only on their key."""

import math
from collections import Counter
from itertools import permutations
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from ance_cli.config import DrawConfig
from ance_cli.config.sets import SamplerName
from ance_cli.mining.sampling import (
    SAMPLERS,
    draw_from_corpus,
    keyed_generator,
    order,
)


def has_equal_chances(counts, draws, share):
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


def weights_of(config, scores, positive):
    """The formula of each sampler, with exponentials as it is written."""
    return {
        "uniform": lambda: [1.0] * len(scores),
        "weighted": lambda: [math.exp(s / config.sampler_temperature) for s in scores],
        "simans": lambda: [
            math.exp(-config.simans_a * (s - positive - config.simans_b) ** 2) for s in scores
        ],
    }[config.sampler]()


def described(config):
    return f"{config.sampler}-{config.sampler_temperature}-{config.simans_a}-{config.simans_b}"


def chance_of(drawn, weights):
    """Probability of drawing these places one after the other without replacement."""
    chance, left = 1.0, dict(enumerate(weights))
    for place in drawn:
        chance *= left.pop(place) / (sum(left.values()) + weights[place])
    return chance


DRAWN = [
    DrawConfig(sampler="uniform"),
    DrawConfig(sampler="weighted"),
    DrawConfig(sampler="weighted", sampler_temperature=0.4),
    DrawConfig(sampler="simans"),
    DrawConfig(sampler="simans", simans_a=1.0, simans_b=-1.5),
]


@pytest.mark.parametrize("config", DRAWN, ids=described)
def test_orders_have_the_probabilities_of_the_formula(config):
    """All ordered pairs of first picks are enumerated and their frequencies compared."""
    draws = 6000
    counts = Counter()
    for query in range(draws):
        places = order(SCORES, 1.0, config, keyed_generator(42, 0, f"q{query}", "d", "ann"))
        assert sorted(places.tolist()) == [0, 1, 2, 3, 4]
        counts[tuple(places[:2].tolist())] += 1
    weights = weights_of(config, SCORES, 1.0)
    expected = {two: draws * chance_of(two, weights) for two in permutations(range(5), 2)}
    assert sum(expected.values()) == pytest.approx(draws)
    rare = [two for two in expected if expected[two] < 5]
    found = [counts[two] for two in expected if two not in rare]
    wanted = [expected[two] for two in expected if two not in rare]
    if rare:
        found.append(sum(counts[two] for two in rare))
        wanted.append(sum(expected[two] for two in rare))
    assert stats.chisquare(found, wanted).pvalue > 0.001


def test_the_comparison_rejects_another_formula():
    weights = weights_of(DrawConfig(sampler="weighted"), SCORES, None)
    other = DrawConfig(sampler="weighted", sampler_temperature=0.8)
    counts = Counter()
    for query in range(6000):
        places = order(SCORES, None, other, keyed_generator(42, query))
        counts[int(places[0])] += 1
    expected = [6000 * weight / sum(weights) for weight in weights]
    assert stats.chisquare([counts[place] for place in range(5)], expected).pvalue < 1e-6


def test_a_uniform_prefix_contains_every_place_equally_often():
    draws = 5000
    counts = Counter()
    for query in range(draws):
        counts.update(order(np.zeros(20), None, DrawConfig(), keyed_generator(query))[:5].tolist())
    assert has_equal_chances([counts[place] for place in range(20)], draws, 5 / 20)


def test_the_check_of_equal_chances_rejects_unequal_ones():
    rng = np.random.default_rng(0)
    chances = np.linspace(0.8, 1.2, 20) / 20
    drawn = Counter(rng.choice(20, 5000, p=chances).tolist())
    assert not has_equal_chances([drawn[place] for place in range(20)], 5000, 1 / 20)


def test_top_orders_by_rank():
    scores = np.array([3.0, 9.0, 1.0])
    found = order(scores, None, DrawConfig(sampler="top"), keyed_generator(1))
    assert found.tolist() == [0, 1, 2]


@pytest.mark.parametrize("shift", [0.0, 256.0, -1024.0])
def test_only_differences_of_scores_matter(shift):
    """Scores are multiples of 1/4, so that the shifted ones are exact."""
    scores = np.arange(40, 0, -1) / 4
    for config in DRAWN:
        one = order(scores, 5.0, config, keyed_generator(7))
        other = order(scores + shift, 5.0 + shift, config, keyed_generator(7))
        assert np.array_equal(one, other)


@pytest.mark.parametrize("level", [310.0, -310.0, 1e4, -1e4])
@pytest.mark.parametrize("config", DRAWN, ids=described)
def test_large_scores_do_not_overflow(level, config):
    scores = np.linspace(level + 5, level - 5, 50).astype(np.float32)
    with np.errstate(all="raise"):
        places = order(scores, level - 300, config, keyed_generator(3))
    assert sorted(places.tolist()) == list(range(50))


def test_a_cold_weighted_draw_is_the_top_and_a_narrow_simans_the_nearest():
    scores = np.array([9.0, 7.0, 4.0, 1.0])
    cold = DrawConfig(sampler="weighted", sampler_temperature=1e-3)
    narrow = DrawConfig(sampler="simans", simans_a=1e4)
    shifted = DrawConfig(sampler="simans", simans_a=1e4, simans_b=3.5)
    for seed in range(20):
        rng = keyed_generator(seed)
        assert order(scores, None, cold, rng).tolist() == [0, 1, 2, 3]
        assert order(scores, 5.0, narrow, rng)[:2].tolist() == [2, 1]
        assert order(scores, 5.0, shifted, rng)[:2].tolist() == [0, 1]


def test_simans_without_a_positive_s_score_is_refused():
    with pytest.raises(ValueError, match="positive"):
        order(SCORES, None, DrawConfig(sampler="simans"), keyed_generator(1))


def test_the_samplers_are_those_of_the_config():
    assert tuple(SAMPLERS) == get_args(SamplerName)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_empty_list_has_an_empty_order(name):
    assert order(np.zeros(0), 1.0, DrawConfig(sampler=name), keyed_generator(1)).tolist() == []


# ---------------------------------------------------------------- the whole corpus


def test_banned_documents_are_never_drawn_and_the_others_uniformly():
    banned = {0, 3, 4, 17}
    allowed = [place for place in range(25) if place not in banned]
    counts = Counter()
    for query in range(4000):
        drawn = draw_from_corpus(np.arange(25), 3, banned, keyed_generator(1, query)).tolist()
        assert len(set(drawn)) == 3
        assert banned.isdisjoint(drawn)
        counts.update(drawn)
    assert has_equal_chances([counts[place] for place in allowed], 4000, 3 / 21)


@pytest.mark.parametrize(("num_docs", "count"), [(10, 3), (10, 6), (10, 7), (10, 50), (3, 1)])
def test_a_corpus_with_too_few_documents_gives_all_that_are_allowed(num_docs, count):
    banned = {1, 2, 5, 8}
    drawn = draw_from_corpus(np.arange(num_docs), count, banned, keyed_generator(1)).tolist()
    allowed = set(range(num_docs)) - banned
    assert len(drawn) == len(set(drawn)) == min(count, len(allowed))
    assert allowed.issuperset(drawn)


def test_a_corpus_of_banned_documents_gives_nothing():
    assert draw_from_corpus(np.arange(3), 2, {0, 1, 2}, keyed_generator(1)).tolist() == []
