"""Answer matching is DPR's, token by token."""

import json
import random
import subprocess
import sys
import unicodedata

import pytest
from pyserini.eval.evaluate_dpr_retrieval import SimpleTokenizer, has_answers

from ance_cli.evaluation.answer_match import (
    AnswerMatcher,
    PatternMatcher,
    answer_tokens,
    normalised,
)
from ance_cli.formats.dataset import read_answers, read_corpus, read_qrels


@pytest.mark.parametrize(
    ("answers", "text", "expected"),
    [
        (["New York"], "He moved to new  york\nin 1920.", True),
        (["New York"], "New was the house in York", False),
        (["York New"], "New York", False),
        (["art"], "It is a part of it", False),
        (["Art"], "modern art.", True),
        (["U.S."], "the U.S. economy", True),
        (["U.S."], "the U.S economy", False),
        (["U. S."], "the U.S. economy", True),  # white space is no token
        (["$12"], "nearly $12 a barrel", True),
        (["12"], "nearly $12 a barrel", True),
        (["12"], "in 1912", False),
        (["Beyoncé"], "Beyonce\u0301 sang", True),  # NFD
        (["Beyonce"], "Beyoncé sang", False),  # marks stay
        (["STRASSE"], "strasse", True),
        (["a", "comet"], "the comet", True),
        (["late comet", "comet"], "a comet", True),
        (["the end"], "this is the end", True),
        (["end of"], "this is the end", False),
        (["東京"], "東京", True),
        (["x"], "", False),
    ],
)
def test_a_text_matches_if_it_contains_the_tokens_of_an_answer(answers, text, expected):
    assert AnswerMatcher(answers).matches(text) is expected
    assert has_answers(text, answers, SimpleTokenizer()) is expected


@pytest.mark.parametrize("answers", [[], [""], [" "], ["\t\n"], ["\u200b"]])
@pytest.mark.parametrize("text", ["", " ", "a comet"])
def test_an_empty_answer_matches_nothing(answers, text):
    assert not AnswerMatcher(answers).matches(text)


def test_an_empty_answer_next_to_a_real_one_changes_nothing():
    matcher = AnswerMatcher(["", "comet"])
    assert matcher.matches("a comet") and not matcher.matches("a violin")


def test_a_tokenised_text_matches_like_the_text():
    tokens = answer_tokens("Dr. Who's café")
    assert tokens == unicodedata.normalize("NFD", " dr . who ' s café ")
    assert AnswerMatcher(["who's"]).matches_tokens(tokens)
    assert not AnswerMatcher(["whos"]).matches_tokens(tokens)
    assert answer_tokens(" \n") == " "


def test_random_texts_agree_with_the_brute_force():
    rng = random.Random(5)
    letters = [
        "a",
        "B",
        "é",
        "e\u0301",
        "İ",
        "ß",
        " ",
        "  ",
        "\n",
        "-",
        ".",
        "1",
        "½",
        "\u200d",
        "東",
    ]

    def text(most):
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, most)))

    found = 0
    for _ in range(2_000):
        answers = [answer for answer in (text(3), text(4)) if answer_tokens(answer).strip()]
        passage = text(30)
        expected = has_answers(passage, answers, SimpleTokenizer())
        assert AnswerMatcher(answers).matches(passage) is expected, (answers, passage)
        found += expected
    assert 200 < found < 1_800


@pytest.mark.parametrize(
    ("answers", "text", "expected"),
    [
        ([r"19(14|15)"], "in 1914", True),
        ([r"19(14|15)"], "in 1916", False),
        ([r"Sacramento"], "SACRAMENTO, California", True),
        ([r"^comet"], "a violin\ncomet", True),  # each line
        ([r"art"], "it is a part", True),  # no tokens here
        ([r"Beyonc\w+ sang"], "Beyoncé sang", False),  # NFD: a mark is no \w
        (["Beyoncé"], "Beyonce\u0301", True),
        (["(", "violin"], "a violin", True),
        (["("], "(", False),  # not a regular expression
        ([], "comet", False),
    ],
)
def test_patterns_are_searched_as_dpr_does(answers, text, expected):
    assert PatternMatcher(answers).matches_normalised(normalised(text)) is expected
    assert has_answers(text, answers, SimpleTokenizer(), regex=True) is expected


def test_invalid_patterns_are_listed():
    assert PatternMatcher(["comet", "(", "[a"]).broken == ["(", "[a"]


def test_neither_torch_nor_a_jvm_is_started():
    code = (
        "import sys; from ance_cli.evaluation.answer_match import AnswerMatcher\n"
        "assert AnswerMatcher(['comet']).matches('a comet')\n"
        "heavy = {'torch', 'jnius', 'transformers', 'openai'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


@pytest.mark.realdata
def test_real_passages_contain_their_answers(test_data):
    folder = test_data / "squad"
    answers = read_answers(folder / "queries.jsonl")
    passages = {p.doc_id: answer_tokens(p.text) for p in read_corpus(folder / "corpus.jsonl")}
    (split, *_) = sorted((folder / "qrels").glob("*.tsv"))
    judged = [
        (AnswerMatcher(answers[query_id]), doc_id)
        for query_id, docs in read_qrels(split).items()
        if query_id in answers
        for doc_id, grade in docs.items()
        if grade > 0
    ]
    held = sum(matcher.matches_tokens(passages[doc_id]) for matcher, doc_id in judged)
    assert held / len(judged) > 0.98
