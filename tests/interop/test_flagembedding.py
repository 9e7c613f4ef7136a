"""FlagEmbedding's rows of texts."""

import json

import pytest

from ance_cli.errors import BadInput
from ance_cli.interop.records import content_id

ROW = {"query": "what causes gout", "pos": ["crystals"], "neg": ["a cramp", "a contraction"],
       "prompt": "Represent this", "type": "normal"}  # fmt: skip


def test_ids_are_hashes_and_the_scores_the_teachers(imported, write):
    scored = {
        "query": "why do muscles cramp", "pos": ["a contraction"], "pos_scores": [9],
        "neg": ["crystals", "a cramp"], "neg_scores": [-1.5, 2],
    }  # fmt: skip
    write("rows.jsonl", json.dumps(ROW), json.dumps(scored), json.dumps(ROW))
    found = imported("flagembedding:rows.jsonl")
    texts = ["crystals", "a cramp", "a contraction"]
    assert found.corpus == {content_id(text): ("", text) for text in texts}
    assert found.labels() == [
        (content_id("what causes gout"), content_id("crystals"), "1"),
        (content_id("why do muscles cramp"), content_id("a contraction"), "1"),
    ]
    plain, taught = found.negatives()
    assert plain["negative_ids"] == [content_id("a cramp"), content_id("a contraction")]
    assert "teacher_scores" not in plain and plain["sources"] == ["neg", "neg"]
    assert taught["teacher_scores"] == [-1.5, 2.0] and taught["teacher_positive_score"] == 9.0
    assert found.summary["repeated"] == 3 + 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": None}, "'query' should be a string that is not empty"),
        ({"pos": "crystals"}, "'pos' should be a list, found str"),
        ({"neg": ["", "x"]}, "'neg' should contain strings that are not empty"),
        ({"neg_scores": [1]}, "'neg_scores' should be a list of 2 scores"),
        ({"neg_scores": [1, "2"]}, "'neg_scores' should contain finite numbers, found '2'"),
    ],
)
def test_a_broken_row_is_named(imported, write, change, words):
    write("rows.jsonl", json.dumps(ROW), json.dumps({**ROW, **change}))
    with pytest.raises(BadInput, match=f"rows.jsonl:2: {words}"):
        imported("rows.jsonl")


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "passages"), [("nq", 986), ("msmarco", 260)])
def test_published_rows(imported, test_data, name, passages):
    path = test_data / "interop" / f"flagembedding-{name}.jsonl"
    found = imported(path)
    assert (len(found.corpus), len(found.queries)) == (passages, 10)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(found.queries.values()) == {row["query"] for row in rows}
    unlike = sum(len(set(row["neg"]) - set(row["pos"])) for row in rows)
    assert sum(len(pair["negative_ids"]) for pair in found.negatives()) == unlike
    for pair, row in zip(found.negatives(), rows, strict=True):
        scores = dict(zip(map(content_id, row["neg"][::-1]), row["neg_scores"][::-1], strict=True))
        assert pair["teacher_scores"] == [scores[doc_id] for doc_id in pair["negative_ids"]]
        assert pair["teacher_positive_score"] == row["pos_scores"][0]
