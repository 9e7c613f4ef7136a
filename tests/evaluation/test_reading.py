"""Exact match and F1 are those of SQuAD v1.1's script."""

import re
import string
from collections import Counter

import pytest

from ance_cli.evaluation.reading import exact_match, f1, normalised_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Beatles", "beatles"),
        ("  a  U.S.  president, ", "us president"),
        ("An apple a day", "apple day"),
        ("theatre and another", "theatre and another"),  # articles are whole words
        ("$3.5 million", "35 million"),
        ("the-end", "theend"),  # punctuation is removed first, which joins its neighbours
        ("Zürich\u2019s", "zürich\u2019s"),  # ASCII punctuation alone
        ("the", ""),
    ],
)
def test_the_published_normalisation(text, expected):
    assert normalised_answer(text) == expected


def test_examples_by_hand():
    gold = ["Denver Broncos", "The Broncos"]
    assert exact_match("the denver broncos!", gold) == 1
    assert exact_match("Denver", gold) == 0
    assert f1("Denver", gold) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert f1("broncos of Denver", gold) == pytest.approx(4 / 5)  # precision 2/3, recall 1
    assert f1("Panthers", gold) == 0 and f1("", gold) == 0
    assert exact_match("Denver", []) == 0 and f1("Denver", []) == 0
    assert f1("x x y", ["x y y"]) == pytest.approx(2 / 3)  # a word counts as often as in both


def test_f1_is_the_harmonic_mean_of_precision_and_recall_as_in_the_script():
    def script(prediction, truth):
        def normalise(s):
            s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
            return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

        ours, theirs = normalise(prediction).split(), normalise(truth).split()
        num_same = sum((Counter(ours) & Counter(theirs)).values())
        if num_same == 0:
            return 0.0
        precision, recall = num_same / len(ours), num_same / len(theirs)
        return 2 * precision * recall / (precision + recall)

    texts = ["", "the", "a b", "b a c c", "C. c-c", "a the b b", "nothing else"]
    for answer in texts:
        for gold in texts:
            assert f1(answer, [gold]) == pytest.approx(script(answer, gold))
        assert f1(answer, texts) == pytest.approx(max(script(answer, gold) for gold in texts))
