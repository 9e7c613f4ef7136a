"""The audit, against a recount by hand."""

import math
import random

import pytest

from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.mining.audit import Audit, logit_of


def quantile(values, share):
    """Linear interpolation between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def quantiles(values):
    shares = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    return {name: pytest.approx(quantile(values, s), abs=6e-5) for name, s in shares.items()}


def random_pairs(wanted=6, count=120):
    rng = random.Random(11)
    pairs = []
    for n in range(count):
        scored = rng.randint(0, wanted) if n % 10 else 0
        drawn = rng.randint(0, wanted - scored) if n % 10 else 0
        ids = [f"d{doc}" for doc in rng.sample(range(100), scored + drawn)]
        scores = [rng.uniform(-3, 3) for _ in range(scored)] + [None] * drawn
        sources = ["ann"] * scored + ["random"] * drawn
        ranks = [rng.randint(1, 50) for _ in range(scored)] + [None] * drawn
        positive = rng.choice([None, rng.uniform(-3, 3), rng.uniform(0, 5)])
        pairs.append(PairNegatives(f"q{n // 2}", f"p{n}", ids, scores, ranks, positive, sources))
    return pairs


def audited(pairs, wanted=6, **more):
    audit = Audit(wanted, **more)
    for pair in pairs:
        audit.add(pair, {"ann": wanted - len(pair.negative_ids)})
    return audit.summary()


def test_the_audit_equals_a_recount():
    pairs = random_pairs()
    found = audited(pairs)
    lengths = [len(pair.negative_ids) for pair in pairs]
    scores = [[s for s in pair.negative_scores if s is not None] for pair in pairs]
    both = [
        (pair.positive_score, max(own))
        for pair, own in zip(pairs, scores, strict=True)
        if own and pair.positive_score is not None
    ]
    assert found == {
        "pairs": 120,
        "negatives": sum(lengths),
        "shares": {},
        "by_source": {
            "ann": sum(map(len, scores)),
            "random": sum(lengths) - sum(map(len, scores)),
        },
        "removed_from_candidates": {},
        "pairs_short_of_negatives": sum(length < 6 for length in lengths),
        "pairs_without_negatives": lengths.count(0),
        "negatives_missing": sum(6 - length for length in lengths),
        "missing_by_source": {"ann": sum(6 - length for length in lengths)},
        "negative_ranks": quantiles(
            [rank for pair in pairs for rank in pair.negative_ranks if rank is not None]
        ),
        "negative_scores": quantiles([score for own in scores for score in own]),
        "positive_scores": quantiles(
            [pair.positive_score for pair in pairs if pair.positive_score is not None]
        ),
        "margin_to_best_negative": quantiles([positive - best for positive, best in both]),
        "share_of_positives_below_a_negative": pytest.approx(
            sum(best > positive for positive, best in both) / len(both), abs=6e-5
        ),
    }
    assert 0 < found["share_of_positives_below_a_negative"] < 1
    assert 0 < found["pairs_without_negatives"] < found["pairs_short_of_negatives"] < 120


def test_a_positive_that_ties_with_its_best_negative_is_not_below_it():
    pair = PairNegatives("q", "p", ["d1", "d2"], [0.5, 0.25], [1, 2], 0.5, ["ann", "ann"])
    assert audited([pair])["share_of_positives_below_a_negative"] == 0.0


def test_removals_are_summed_by_source_and_rule():
    audit = Audit(5)
    for source, rule, count in (
        ("ann", "positives", 2), ("ann", "positives", 1), ("ann", "max_score", 0),
        ("bm25", "copies_of_positives", 4),
    ):  # fmt: skip
        audit.remove(source, rule, count)
    assert audit.summary()["removed_from_candidates"] == {
        "ann": {"positives": 3, "max_score": 0},
        "bm25": {"copies_of_positives": 4},
    }


def test_absent_sources_are_listed():
    found = audited([], shares={"ann": 1 / 3, "random": 2 / 3}, absent=["previous"])
    assert found["shares"] == {"ann": 0.3333, "random": 0.6667}
    assert found["absent_sources"] == ["previous"]


def test_the_overlap_with_bm25_is_the_mean_share_of_its_top():
    top = {"q1": {"a", "x"}, "q2": set()}
    pairs = [PairNegatives("q1", "p", ["a", "b"]), PairNegatives("q2", "p", ["a"])]
    assert audited(pairs, bm25=top.__getitem__)["overlap_with_bm25_top_100"] == 0.25


def test_a_teacher_s_false_negatives_are_counted():
    audit = Audit(3, probable=0.75)
    for logit, positive in ((2.0, 1.0), (1.0, 1.0), (1.2, 5.0), (-3.0, -4.0), (0.0, 1.0)):
        audit.judge(logit, positive)
    assert audit.summary()["teacher"] == {
        "judged_negatives": 5,
        "share_above_the_positive": 0.4,
        "probability": 0.75,
        "share_above_probability": 0.4,  # sigmoid(1.2) = 0.77, sigmoid(1.0) = 0.73
    }
    assert "teacher" not in audited([])


def test_without_scores_the_statistics_of_scores_are_none():
    pair = PairNegatives("q", "p", ["d1"], [None], [None], None, ["random"])
    found = audited([pair], wanted=1)
    for name in (
        "negative_scores",
        "positive_scores",
        "margin_to_best_negative",
        "share_of_positives_below_a_negative",
    ):
        assert found[name] is None
    assert found["pairs_short_of_negatives"] == found["negatives_missing"] == 0


def test_the_overlap_is_the_mean_share_of_earlier_negatives():
    pairs = [
        PairNegatives("q1", "p1", ["a", "b", "c", "d"]),
        PairNegatives("q1", "p2", ["a", "b"]),
        PairNegatives("q2", "p1", ["a", "b", "c"]),
        PairNegatives("q3", "p1", []),
    ]
    earlier = {
        ("q1", "p1"): {"d", "x", "a", "y"},
        ("q1", "p2"): {"a", "b", "z"},
        ("q3", "p1"): {"a"},
        ("q9", "p9"): {"a"},
    }
    found = audited(pairs, earlier=earlier)
    assert found["overlap_with_earlier"] == pytest.approx((0.5 + 1 + 0) / 3, abs=6e-5)
    assert found["churn_against_earlier"] == pytest.approx((0.5 + 0 + 1) / 3, abs=6e-5)


def test_an_overlap_is_reported_only_with_earlier_negatives():
    assert "overlap_with_earlier" not in audited(random_pairs())
    nothing = audited([PairNegatives("q1", "p1", [])], wanted=0, earlier={("q1", "p1"): {"a"}})
    assert nothing["overlap_with_earlier"] is nothing["churn_against_earlier"] is None


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.999])
def test_a_logit_has_its_probability(probability):
    assert 1 / (1 + math.exp(-logit_of(probability))) == pytest.approx(probability)
    assert (logit_of(0.0), logit_of(1.0)) == (-math.inf, math.inf)
