"""Fused runs against twins that go document by document."""

import random

import pytest

from ance_cli.retrieval.fusion import reciprocal_ranks, weighted_sum


def random_runs(seed, count=3):
    """Runs that share some queries and documents, with ties."""
    rng = random.Random(seed)
    return [
        {
            f"q{q}": {
                f"d{d}": rng.choice([0.5, 2.0, rng.uniform(-9, 9)])
                for d in rng.sample(range(30), rng.randint(1, 20))
            }
            for q in rng.sample(range(6), 5)
        }
        for _ in range(count)
    ]


def rank_of(doc_id, hits):
    """1 + the number of documents with a greater score, or an equal score and a greater id."""
    return 1 + sum((s, d) > (hits[doc_id], doc_id) for d, s in hits.items())


def normalised(score, hits, norm):
    values = list(hits.values())
    mean = sum(values) / len(values)
    if norm == "none":
        return score
    if max(values) == min(values):
        return 0.0
    if norm == "minmax":
        return (score - min(values)) / (max(values) - min(values))
    return (score - mean) / (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5


def fused_by_hand(runs, contribution):
    queries = {q for run in runs for q in run}
    return {
        q: {
            d: sum(contribution(n, d, run[q]) for n, run in enumerate(runs) if q in run)
            for d in {d for run in runs for d in run.get(q, {})}
        }
        for q in queries
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for query_id, scores in expected.items():
        assert found[query_id] == pytest.approx(scores, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_reciprocal_ranks(seed):
    runs, weights = random_runs(seed), [1.0, 0.5, 2.0]

    def contribution(n, doc_id, hits):
        return weights[n] / (60 + rank_of(doc_id, hits)) if doc_id in hits else 0.0

    same(reciprocal_ranks(runs, weights, 60), fused_by_hand(runs, contribution))


@pytest.mark.parametrize("norm", ["minmax", "z", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_sums(seed, norm):
    runs, weights = random_runs(seed), [1.0, 0.5, 2.0]

    def contribution(n, doc_id, hits):
        return weights[n] * normalised(hits.get(doc_id, min(hits.values())), hits, norm)

    same(weighted_sum(runs, weights, norm), fused_by_hand(runs, contribution))


def test_cormacks_constant_by_eye():
    runs = [{"q": {"a": 9.0, "b": 8.0}}, {"q": {"b": 0.3, "c": 0.2}}]
    assert reciprocal_ranks(runs, [1.0, 1.0], 60) == {
        "q": pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})
    }


@pytest.mark.parametrize("norm", ["minmax", "z"])
def test_equal_scores_say_nothing(norm):
    # 0.1 thrice has a mean that differs from it in the last bit
    runs = [{"q": {"a": 0.1, "b": 0.1, "c": 0.1}}, {"q": {"b": 2.0, "c": 1.0}}]
    found = weighted_sum(runs, [5.0, 1.0], norm)["q"]
    assert found["b"] > found["c"] == found["a"]


def test_a_query_of_one_run_alone_keeps_its_order():
    runs = [{"q1": {"a": 2.0, "b": 5.0}}, {"q2": {"c": 1.0, "d": 4.0}}]
    for found in (reciprocal_ranks(runs, [1.0, 1.0], 60), weighted_sum(runs, [1.0, 1.0], "z")):
        assert list(found) == ["q1", "q2"]
        assert found["q1"]["b"] > found["q1"]["a"] and found["q2"]["d"] > found["q2"]["c"]
