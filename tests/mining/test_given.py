"""The source `given`: negatives that came with the data."""

import json

import pytest

from ance_cli.call import Call
from ance_cli.config import DrawConfig
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import locate
from ance_cli.mining.given import given_lists
from ance_cli.mining.mining_data import read_mining_data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{n}", "text": f"text {n}"}) + "\n" for n in range(60))
    )
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{n}", "text": f"query {n}"}) + "\n" for n in range(3))
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text("q0\td0\t1\nq0\td1\t1\nq1\td1\t1\nq2\td2\t1\n")
    return tmp_path


def write(folder, *pairs):
    (folder / "negatives").mkdir(exist_ok=True)
    lines = [
        json.dumps({"query_id": q, "positive_id": p, "negative_ids": list(negatives)})
        for q, p, *negatives in pairs
    ]
    (folder / "negatives/train.jsonl").write_text("\n".join(lines) + "\n")


def lists(folder, split="train"):
    dataset = locate(folder, split)
    data = read_mining_data(dataset, DrawConfig(depth=5), Call())
    return given_lists(dataset, data, None)


def test_each_query_has_the_negatives_of_its_pairs(folder):
    write(folder, ("q0", "d0", "d5", "d6"), ("q0", "d1", "d6", "d7"), ("q1", "d1", "d9"))
    found = lists(folder)
    assert found.listed("q0")[0].tolist() == [5, 6, 7]
    assert found.listed("q1")[0].tolist() == [9]
    assert found.listed("q2")[0].tolist() == [] and found.scores is None


def test_data_without_negatives(folder):
    with pytest.raises(UsageProblem, match="has no negatives/train.jsonl") as caught:
        lists(folder)
    assert "ance import" in caught.value.hint


def test_negatives_that_are_positives_are_refused(folder):
    write(folder, ("q0", "d0", "d1"))
    with pytest.raises(BadInput, match="is a positive of query 'q0'"):
        lists(folder)
