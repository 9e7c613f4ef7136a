"""Passages that hold an answer, against DPR's own loop over texts."""

import pytest
from pyserini.eval.evaluate_dpr_retrieval import SimpleTokenizer, has_answers

from ance_cli.errors import BadInput
from ance_cli.evaluation.answer_coverage import passages_with_answers
from ance_cli.evaluation.answer_match import (
    AnswerMatcher,
    PatternMatcher,
    answer_tokens,
    normalised,
)
from ance_cli.formats.dataset import Passage, read_answers, read_corpus, read_qrels

PASSAGES = [
    Passage("d1", "comet", "a violin"),  # the title is not looked at
    Passage("d2", "", "the Comet of 1910"),
    Passage("d3", "", "nothing"),
]
RUN = {"q1": {"d1": 3.0, "d2": 2.0, "d3": 1.0}, "q2": {"d1": 1.0}, "q9": {"d8": 1.0}}


def matchers(**answers):
    return {name: AnswerMatcher(texts).matches_tokens for name, texts in answers.items()}


def test_only_the_body_of_retrieved_passages_is_read():
    tests = matchers(q1=["comet"], q2=["comet"], q3=["comet"])
    assert passages_with_answers([RUN], 3, tests, answer_tokens, PASSAGES) == {"q1": {"d2": 1}}
    assert passages_with_answers([RUN], 1, tests, answer_tokens, PASSAGES) == {}
    other = {"q2": {"d2": 1.0}, "q3": {"d2": 1.0}}
    assert passages_with_answers([RUN, other], 1, tests, answer_tokens, PASSAGES) == {
        "q2": {"d2": 1},
        "q3": {"d2": 1},
    }


def test_each_text_is_prepared_once():
    prepared = []

    def prepare(text):
        prepared.append(text)
        return answer_tokens(text)

    tests = matchers(q1=["violin"], q2=["violin"])
    found = passages_with_answers([RUN, RUN], 2, tests, prepare, PASSAGES)
    assert found == {"q1": {"d1": 1}, "q2": {"d1": 1}}
    assert prepared == ["a violin", "the Comet of 1910"]


def test_a_document_that_is_not_in_the_corpus_is_refused():
    with pytest.raises(BadInput) as caught:
        passages_with_answers([RUN], 5, matchers(q9=["x"]), answer_tokens, PASSAGES)
    assert caught.value.what == "document 'd8', retrieved for query 'q9', is not in the corpus"


@pytest.mark.realdata
@pytest.mark.parametrize("regex", [False, True])
def test_coverage_of_real_questions_is_dprs(test_data, regex):
    folder = test_data / "squad"
    answers = read_answers(folder / "queries.jsonl")
    passages = list(read_corpus(folder / "corpus.jsonl"))
    places = {passage.doc_id: place for place, passage in enumerate(passages)}
    run, expected = {}, {}
    tokenizer = SimpleTokenizer()
    for query_id, judged in list(read_qrels(folder / "qrels" / "dev.tsv").items())[:60]:
        positive = places[next(iter(judged))]
        near = [passages[place % len(passages)] for place in range(positive - 2, positive + 3)]
        run[query_id] = {passage.doc_id: -float(n) for n, passage in enumerate(near)}
        own = answers[query_id]
        held = {p.doc_id: 1 for p in near if has_answers(p.text, own, tokenizer, regex)}
        expected |= {query_id: held} if held else {}
    if regex:
        tests = {q: PatternMatcher(answers[q]).matches_normalised for q in run}
    else:
        tests = {q: AnswerMatcher(answers[q]).matches_tokens for q in run}
    prepare = normalised if regex else answer_tokens
    found = passages_with_answers([run], 5, tests, prepare, passages)
    assert found == expected and len(found) > 40
