"""The functions for notebooks, on data of every kind that they take."""

import numpy as np
import pandas
import pytest

import ance_cli.api as ance
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from tests.world import jsonl, make_dataset

RECIPE = {"batch_size": 8, "query_length": 12, "passage_length": 24, "lr": 1e-4}


@pytest.fixture
def world(tmp_path, backbone, monkeypatch):
    """A dataset folder, an encoder, and caches of the test's own."""
    monkeypatch.setenv("ANCE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data")
    return backbone


ROWS = [{"question": f"who is {n}?", "answer": f"person {n}"} for n in range(5)]


def kinds():
    datasets = pytest.importorskip("datasets")
    return {
        "dicts": ROWS,
        "tuples": [tuple(row.values()) for row in ROWS],
        "frame": pandas.DataFrame(ROWS),
        "dataset": datasets.Dataset.from_list(ROWS),
        "splits": datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
    }


@pytest.mark.parametrize("kind", ["dicts", "tuples", "frame", "dataset", "splits"])
def test_data_of_any_kind_makes_the_same_dataset(world, kind):
    folder = ance.dataset(kinds()[kind])
    assert [r["text"] for r in jsonl(folder / "queries.jsonl")] == [r["question"] for r in ROWS]
    assert [r["text"] for r in jsonl(folder / "corpus.jsonl")] == [r["answer"] for r in ROWS]
    assert (folder / "qrels" / "train.tsv").exists()
    assert ance.dataset(kinds()[kind]) == folder


def test_paths_and_negatives(world, tmp_path):
    assert ance.dataset("data") == ance.dataset(tmp_path / "data").relative_to(tmp_path)
    (tmp_path / "faq.csv").write_text("question,answer\nwhy?,so\n")
    assert len(jsonl(ance.dataset("faq.csv") / "queries.jsonl")) == 1
    folder = ance.dataset([("q", "p", "n1", "n2"), ("r", "p", "n1", "n3")])
    assert len(jsonl(folder / "negatives" / "train.jsonl")) == 2


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (3, UsageProblem, "data of type int"),
        ([3], UsageProblem, "a row of type int"),
        ([{"foo": 1}], BadInput, "it has foo"),
        ([("q", "")], BadInput, "row 1: 'positive' is empty"),
        ("none.csv", BadInput, "no such file"),
    ],
)
def test_data_that_cannot_be_read(world, data, error, words):
    with pytest.raises(error, match=words):
        ance.dataset(data)


def test_a_cycle_in_a_notebook(world, capsys):
    first = ance.train("data", world, "warm", steps=2, query_prefix="ask: ", **RECIPE)
    vectors = ance.encode(["old violin", "granite"], first)
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    questions = ance.encode(["old violin"], first, side="query")
    assert questions.shape == (1, 32) and not np.allclose(questions[0], vectors[0])

    negatives = ance.mine("data", first, depth=5, negatives=2)
    assert [*negatives.columns] == ["query_id", "positive_id", "negative_id", "rank", "score"]
    assert negatives.groupby(["query_id", "positive_id"]).size().max() == 2
    second = ance.train("data", first, "run", negatives, steps=2, **RECIPE)
    assert second.exists()

    table = ance.evaluate("data", [first, second], split="dev", measures="RR@10 R@5")
    assert [*table["measure"]] == ["RR@10", "R@5"] * 2 and table["mean"].between(0, 1).all()
    hits = ance.search("word1 word2", second, "data", depth=3)
    assert [*hits["rank"]] == [1, 2, 3] and hits["score"].is_monotonic_decreasing
    assert hits.loc[0, "text"]
    assert capsys.readouterr().out == ""


def test_search_agrees_with_vectors(world):
    first = ance.train("data", world, "warm", steps=1, **RECIPE)
    texts = {r["_id"]: " ".join(filter(None, (r.get("title"), r["text"])))
             for r in jsonl(ance.dataset("data") / "corpus.jsonl")}  # fmt: skip
    query = ance.encode(["word1 word2"], first, side="query")[0]
    hits = ance.search({"q": "word1 word2"}, first, "data", depth=5)
    best = ance.encode([texts[doc_id] for doc_id in hits["doc_id"]], first)
    np.testing.assert_allclose(hits["score"], best @ query, rtol=2e-3, atol=2e-3)


def test_a_loop_in_a_notebook(world):
    settings = {"preset": "small", "depth": 5, "negatives": 2, **RECIPE}
    best = ance.loop("data", world, "run", refresh_every=2, segments=1, **settings)
    assert best.name == "best" and best.exists()


def test_a_keyword_that_is_no_setting(world):
    with pytest.raises(UsageProblem, match="'dept' is not a setting here"):
        ance.mine("data", world, dept=3)


def test_negatives_of_another_dataset_are_refused(world):
    first = ance.train("data", world, "warm", steps=1, **RECIPE)
    negatives = ance.mine("data", first, depth=5, negatives=2)
    with pytest.raises((BadInput, Mismatch)):
        ance.train(ROWS, world, "other", negatives, steps=1, **RECIPE)
