"""What may never be a negative of a query."""

import math
import random

import numpy as np
import pytest

from ance_cli.formats.dataset import Passage
from ance_cli.mining.filtering import DuplicateIndex, Filters, logit_of, passing

PASSAGES = [
    Passage("a", "One title", "the same text"),
    Passage("b", "", "a text of its own"),
    Passage("c", "Another title", " the  same\ntext "),
    Passage("d", "", ""),
    Passage("e", "", "a second pair"),
    Passage("f", "", "the same text"),
    Passage("g", "", "a second pair"),
    Passage("h", "", "   "),
    Passage("i", "a second pair", ""),
]


def test_documents_are_known_by_their_place_in_the_corpus():
    duplicates = DuplicateIndex(iter(PASSAGES))
    assert duplicates.doc_ids == list("abcdefghi")
    assert duplicates.position["e"] == 4


@pytest.mark.parametrize(
    ("positives", "own", "same"),
    [
        ([], "", ""),
        (["b"], "b", ""),
        (["a"], "a", "cf"),
        (["a", "c"], "ac", "f"),
        (["a", "c", "f"], "acf", ""),
        (["f", "e"], "ef", "acgi"),
        (["i"], "i", "eg"),
    ],
)
def test_positives_and_their_copies_are_banned(positives, own, same):
    duplicates = DuplicateIndex(PASSAGES)
    found_own, found_same = duplicates.banned(positives)
    assert {duplicates.doc_ids[place] for place in found_own} == set(own)
    assert {duplicates.doc_ids[place] for place in found_same} == set(same)


def test_passages_of_white_space_alone_are_copies_of_each_other():
    duplicates = DuplicateIndex(
        [Passage("d1", "", " "), Passage("d2", "", "\n\t"), Passage("d3", "", "x")]
    )
    assert duplicates.banned(["d1"]) == ({0}, {1})


# ---------------------------------------------------------------- rules


def refusing_rule(filters, rank, score, lowest):
    """The first rule that refuses one candidate, said in words of one line each."""
    if rank <= filters.range_min:
        return "range_min"
    if filters.range_max is not None and rank > filters.range_max:
        return "range_max"
    if filters.max_score is not None and score > filters.max_score:
        return "max_score"
    if filters.min_score is not None and score < filters.min_score:
        return "min_score"
    if filters.absolute_margin is not None and not score <= lowest - filters.absolute_margin:
        return "absolute_margin"
    share = filters.relative_margin
    if share is not None and not score <= lowest - abs(lowest) * share:
        return "relative_margin"
    return None


@pytest.mark.parametrize("seed", range(40))
def test_each_rule_refuses_what_it_says(seed):
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
    filters = Filters(**chosen)
    left, refused = passing(filters, ranks, scores, lowest)
    rules = [
        refusing_rule(filters, rank, score, lowest)
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
def test_a_relative_margin_lies_below_the_positive_whatever_its_sign(positive, margin, limit):
    scores = np.array([limit + 1e-3, limit, limit - 1.0])
    left, _ = passing(Filters(relative_margin=margin), np.arange(1, 4), scores, positive)
    assert left.tolist() == [False, True, True]


def test_a_source_without_a_ranking_has_no_rank_window():
    filters = Filters(range_min=2, range_max=3, max_score=1.0)
    left, refused = passing(filters, None, np.array([2.0, 0.5]), None)
    assert left.tolist() == [False, True]
    assert refused == {"max_score": 1}


def test_a_margin_without_a_positive_s_score_is_refused():
    with pytest.raises(ValueError, match="positive"):
        passing(Filters(absolute_margin=0.0), None, np.zeros(2), None)


def test_no_rule_lets_everything_pass():
    left, refused = passing(Filters(), np.arange(1, 4), np.full(3, np.nan), None)
    assert left.all() and refused == {}


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.999])
def test_a_logit_has_its_probability(probability):
    assert 1 / (1 + math.exp(-logit_of(probability))) == pytest.approx(probability)
    assert (logit_of(0.0), logit_of(1.0)) == (-math.inf, math.inf)
