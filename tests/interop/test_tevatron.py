"""Tevatron's rows of both kinds, and its corpus."""

import json

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput


def passage(number):
    return {"docid": str(number), "title": f"title {number}", "text": f"text {number}"}


V1 = {
    "query_id": "q1", "query": "what causes gout", "answers": ["crystals"],
    "positive_passages": [passage(1)], "negative_passages": [passage(2), passage(3)],
}  # fmt: skip
V2 = {
    "query_id": 7, "query_text": "what causes gout", "query_image": None,
    "positive_document_ids": ["1"], "negative_document_ids": ["2", "3", "1"],
}  # fmt: skip


def lines(*records):
    return [json.dumps(record) for record in records]


def test_v1_rows_bring_their_passages(imported, write):
    write("train.jsonl.gz", *lines(V1, {**V1, "query_id": "q2", "positive_passages": [passage(3)]}))
    found = imported("tevatron:train.jsonl.gz")
    assert found.corpus == {str(n): (f"title {n}", f"text {n}") for n in (1, 2, 3)}
    assert found.records[0]["metadata"] == {"answers": ["crystals"]}
    assert found.labels() == [("q1", "1", "1"), ("q2", "3", "1")]
    assert [pair["negative_ids"] for pair in found.negatives()] == [["2", "3"], ["2"]]
    assert found.summary["repeated"] == 3


def test_v2_rows_beside_a_corpus(imported, write):
    write("tev/train.jsonl", *lines(V2))
    write("tev/corpus-0.jsonl", *lines(*map(passage, (1, 2, 3))))
    found = imported("tevatron:tev")
    assert found.queries == {"7": "what causes gout"} and len(found.corpus) == 3
    assert found.labels() == [("7", "1", "1")]
    assert found.negatives()[0]["sources"] == ["negative_document_ids"] * 2
    write("tev/train.jsonl", *lines({**V2, "negative_document_ids": ["4"]}))
    with pytest.raises(BadInput, match=r"tev/train.jsonl:1: document '4' is not in the corpus"):
        imported("tev", output="other")


def test_v1_rows_beside_a_corpus_take_its_texts(imported, write):
    write("corpus.jsonl", *lines(*map(passage, (1, 2, 3, 4))))
    write("train.jsonl", *lines({**V1, "positive_passages": [{**passage(1), "text": "cut"}]}))
    found = imported("corpus.jsonl", "train.jsonl")
    assert found.corpus["1"] == ("title 1", "text 1") and len(found.corpus) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_id": None}, "no 'query_id'; the row has query_id, query"),
        ({"query": " "}, "'query' should be a string that is not empty"),
        ({"positive_passages": {}}, "'positive_passages' should be a list, found dict"),
        ({"negative_passages": ["x"]}, "'negative_passages' should contain objects"),
        ({"positive_passages": [{"title": "x", "text": "y"}]}, "positive_passages: no document id"),
        ({"query_id": "two words"}, "'two words' cannot be an id"),
        ({"positive_passages": [{**passage(2), "text": "other"}]}, "id '2' was used before"),
    ],
)
def test_a_broken_row_is_named(imported, write, change, words):
    write("train.jsonl", *lines({**V1, "query_id": "q0"}, {**V1, **change}))
    with pytest.raises(BadInput, match=f"train.jsonl:2.*{words}"):
        imported("tevatron:train.jsonl")
    skipped = SkippedLines()
    assert "q0" in imported("tevatron:train.jsonl", skipped=skipped).queries
    assert skipped.count == 1


@pytest.mark.parametrize("ids", [[True], [None], "1", [["1"]]])
def test_ids_are_strings_or_numbers(imported, write, ids):
    write("train.jsonl", *lines({**V2, "positive_document_ids": ids}))
    with pytest.raises(BadInput, match=r"train.jsonl:1: 'positive_document_ids' should"):
        imported("train.jsonl")
