"""Rules on ranks and scores, against one-line statements of each rule."""

import random

import numpy as np
import pytest

from ance_cli.config import DrawConfig, MineConfig
from ance_cli.errors import UsageProblem
from ance_cli.mining.rules import RULES, check_positive_scores, check_scores, passing


def refusing_rule(config, rank, score, lowest):
    """The first rule that refuses one candidate, stated in one line per rule."""
    if rank <= config.range_min:
        return "range_min"
    if config.range_max is not None and rank > config.range_max:
        return "range_max"
    if config.max_score is not None and score > config.max_score:
        return "max_score"
    if config.min_score is not None and score < config.min_score:
        return "min_score"
    if config.absolute_margin is not None and not score <= lowest - config.absolute_margin:
        return "absolute_margin"
    share = config.relative_margin
    if share is not None and not score <= lowest - abs(lowest) * share:
        return "relative_margin"
    return None


@pytest.mark.parametrize("seed", range(40))
def test_each_rule_refuses_the_candidates_of_its_statement(seed):
    rng = random.Random(seed)
    count = rng.randint(0, 30)
    scores = np.array(sorted((rng.uniform(-4, 4) for _ in range(count)), reverse=True), np.float32)
    ranks = np.array(sorted(rng.sample(range(1, 60), count)), np.int64)
    lowest = rng.uniform(-4, 4)
    chosen = {
        "range_min": rng.choice([0, 5]),
        "range_max": rng.choice([None, 40]),
        "max_score": rng.choice([None, 2.5]),
        "min_score": rng.choice([None, -2.0]),
        "absolute_margin": rng.choice([None, 0.0, 0.5]),
        "relative_margin": rng.choice([None, 0.05, 0.5]),
    }
    config = DrawConfig(**chosen)
    left, refused = passing(config, ranks, scores, lowest)
    rules = [
        refusing_rule(config, rank, score, lowest)
        for rank, score in zip(ranks.tolist(), scores.tolist(), strict=True)
    ]
    assert left.tolist() == [rule is None for rule in rules]
    active = {name for name, value in chosen.items() if value is not None and value != 0}
    active |= {"absolute_margin"} if chosen["absolute_margin"] is not None else set()
    assert refused == {rule: rules.count(rule) for rule in active}


@pytest.mark.parametrize(
    ("positive", "margin", "limit"),
    [(10.0, 0.05, 9.5), (-10.0, 0.05, -10.5), (0.0, 0.5, 0.0), (300.0, 0.01, 297.0)],
)
def test_a_relative_margin_is_below_the_positive_whatever_its_sign(positive, margin, limit):
    scores = np.array([limit + 1e-3, limit, limit - 1.0])
    left, _ = passing(DrawConfig(relative_margin=margin), np.arange(1, 4), scores, positive)
    assert left.tolist() == [False, True, True]


def test_a_source_without_a_ranking_has_no_rank_window():
    config = DrawConfig(range_min=2, range_max=3, max_score=1.0)
    left, refused = passing(config, None, np.array([2.0, 0.5]), None)
    assert left.tolist() == [False, True]
    assert refused == {"max_score": 1}


def test_a_margin_without_a_positive_s_score_is_refused():
    with pytest.raises(ValueError, match="positive"):
        passing(DrawConfig(absolute_margin=0.0), None, np.zeros(2), None)


def test_no_rule_lets_everything_pass():
    left, refused = passing(DrawConfig(), np.arange(1, 4), np.full(3, np.nan), None)
    assert left.all() and refused == {}


def test_every_rule_is_a_setting():
    assert all(hasattr(DrawConfig, name) for name in RULES)


# ---------------------------------------------------------------- what a config needs


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"sampler": "weighted"}, "--sampler weighted needs scores, and the source bm25 has none"),
        ({"min_score": 0.0}, "a limit on scores needs scores, and the source random has none"),
        (
            {"relative_margin": 0.0},
            "a limit on scores needs scores, and the source random has none",
        ),
    ],
)
def test_sources_without_scores_are_refused_if_the_config_needs_scores(settings, what):
    with pytest.raises(UsageProblem) as caught:
        check_scores(DrawConfig(**settings), ["random", "bm25"], "use embeddings")
    assert (caught.value.what, caught.value.hint) == (what, "use embeddings")


def test_a_sampler_does_not_order_random_and_a_rank_window_needs_no_scores():
    check_scores(DrawConfig(sampler="simans"), ["random"], "")
    check_scores(DrawConfig(range_min=3, range_max=9), ["random", "bm25"], "")
    check_positive_scores(MineConfig(sampler="weighted", max_score=1.0), "")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"sampler": "simans"}, "--sampler simans compares"),
        ({"absolute_margin": 0.0}, "a margin compares"),
        ({"relative_margin": 0.1}, "a margin compares"),
    ],
)
def test_comparisons_with_the_positive_are_refused_without_its_score(settings, what):
    with pytest.raises(UsageProblem) as caught:
        check_positive_scores(MineConfig(**settings), "use embeddings")
    assert caught.value.what == (
        f"{what} with the positive's score, which a search of an index does not return"
    )
