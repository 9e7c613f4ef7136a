"""Negatives files: written whole, checked against the dataset when read."""

import json

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.negatives_file import PairNegatives, Texts, read_negatives

QUERIES = {"q1", "q2"}
DOCS = {"d1", "d2", "d3", "d4"}
POSITIVES = {"q1": ["d1", "d2"], "q2": ["d4"]}


def line(query_id="q1", positive_id="d1", negative_ids=("d3",), **more):
    return json.dumps(
        {"query_id": query_id, "positive_id": positive_id, "negative_ids": negative_ids, **more}
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ann.jsonl"


def read(path, skipped=None, positives=POSITIVES):
    return list(read_negatives(path, QUERIES, DOCS, positives, skipped))


def test_a_pair_is_written_with_all_its_fields():
    pair = PairNegatives("q1", "d1", ["d3", "d4"], [0.5, None], [7, None], 0.75, ["ann", "random"])
    assert json.loads(pair.to_line()) == {
        "query_id": "q1",
        "positive_id": "d1",
        "negative_ids": ["d3", "d4"],
        "negative_scores": [0.5, None],
        "negative_ranks": [7, None],
        "positive_score": 0.75,
        "sources": ["ann", "random"],
    }
    assert pair.to_line().endswith(b"}\n")


def test_a_teacher_s_scores_are_written_and_read_again(path):
    pairs = [
        PairNegatives("q1", "d1", ["d3", "d4"], teacher_scores=[-1.5, None]),
        PairNegatives("q2", "d4", [], teacher_positive_score=4.0),
    ]
    path.write_bytes(b"".join(pair.to_line() for pair in pairs))
    assert read(path) == pairs
    assert json.loads(pairs[0].to_line())["teacher_scores"] == [-1.5, None]
    assert json.loads(pairs[1].to_line())["teacher_positive_score"] == 4.0


def test_without_a_teacher_a_line_says_nothing_of_one():
    assert b"teacher" not in PairNegatives("q1", "d1", ["d3"], [0.5], [1], 0.5, ["ann"]).to_line()


def test_texts_are_added_for_people():
    texts = Texts({"q1": "a question"}, {"d1": "right", "d3": "wrong", "d4": "very wrong"})
    record = json.loads(PairNegatives("q1", "d1", ["d4", "d3"]).to_line(texts))
    assert record["query"] == "a question"
    assert record["positive"] == "right"
    assert record["negatives"] == ["very wrong", "wrong"]


def test_what_was_written_is_read_again(path):
    pairs = [
        PairNegatives("q1", "d1", ["d3", "d4"]),
        PairNegatives("q1", "d2", []),
        PairNegatives("q2", "d4", ["d1"]),
    ]
    path.write_bytes(b"".join(pair.to_line() for pair in pairs))
    assert read(path) == pairs


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (line("q9"), "query 'q9' is not among the queries"),
        (line(positive_id="d9"), "document 'd9' is not in the corpus"),
        (line(negative_ids=["d3", "d9"]), "document 'd9' is not in the corpus"),
        (line(positive_id="d3"), "'d3' is not a positive of query 'q1' in the labels"),
        (
            line(negative_ids=["d3", "d2"]),
            "'d2' is a positive of query 'q1' and is among its negatives",
        ),
        (
            line(negative_ids=["d1"]),
            "'d1' is a positive of query 'q1' and is among its negatives",
        ),
        (line("q2", "d4"), "the same pair is also on line 1"),
        (line(negative_ids="d3"), "'negative_ids' should be a list of strings"),
        (line(negative_ids=["d3", None]), "'negative_ids' should be a list of strings"),
        (line(negative_ids=None), "'negative_ids' should be a list of strings"),
        (
            line(teacher_scores=[1.0, 2.0]),
            "'teacher_scores' should be a list as long as 'negative_ids' (1)",
        ),
        (
            line(teacher_scores=0.5),
            "'teacher_scores' should be a list as long as 'negative_ids' (1)",
        ),
        (
            line(teacher_scores=["high"]),
            "'teacher_scores' should contain finite numbers or null, found 'high'",
        ),
        (
            line(teacher_positive_score=True),
            "'teacher_positive_score' should contain finite numbers or null, found True",
        ),
        (
            line(query_id=True),
            "'query_id' and 'positive_id' should be strings; "
            "the record has query_id, positive_id, negative_ids",
        ),
        ("{}", "'query_id' and 'positive_id' should be strings; the record has no fields"),
        ('"q1"', "expected one JSON object per line, found str"),
    ],
)
def test_a_broken_line_is_named(path, broken, reason):
    path.write_text(f"{line('q2', 'd4')}\n{broken}\n{line('q1', 'd2')}\n")
    with pytest.raises(BadInput) as caught:
        read(path)
    assert caught.value.what == f"{path}:2: {reason}"
    skipped = SkippedLines()
    assert [(pair.query_id, pair.positive_id) for pair in read(path, skipped)] == [
        ("q2", "d4"),
        ("q1", "d2"),
    ]
    assert list(skipped.reasons) == [f"{path}:2: {reason}"]


def test_the_same_pair_of_ids_of_another_query_is_another_pair(path):
    path.write_text(f"{line('q1', 'd1')}\n{line('q2', 'd1')}\n")
    assert len(read(path, positives=None)) == 2


def test_a_positive_of_another_query_may_be_a_negative(path):
    path.write_text(line("q1", "d1", ["d4"]) + "\n")
    assert read(path)[0].negative_ids == ["d4"]


def test_a_file_without_a_usable_line_is_refused(path):
    path.write_text("")
    with pytest.raises(BadInput) as caught:
        read(path)
    assert caught.value.what == f"{path}: the file has no negatives"
    path.write_text("{}\n")
    with pytest.raises(BadInput, match="the file has no negatives"):
        read(path, SkippedLines())


def test_ids_may_be_whole_numbers_as_in_a_corpus(path):
    path.write_text('{"query_id": 1, "positive_id": 2, "negative_ids": [3, "4"]}\n')
    (pair,) = read_negatives(path, {"1"}, {"2", "3", "4"})
    assert (pair.query_id, pair.positive_id, pair.negative_ids) == ("1", "2", ["3", "4"])
