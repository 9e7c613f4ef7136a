"""The demo's dataset, and the demo itself with a small encoder and few steps."""

import json
from dataclasses import replace

from ance_cli.config import DemoConfig
from ance_cli.progress import Silent
from ance_cli.setup import docstrings
from ance_cli.setup.demo import demo
from tests.world import jsonl

SMALL = DemoConfig(passages=600, packages=("rich",))


def test_the_dataset_keeps_apart_what_must_be_apart(tmp_path):
    found = docstrings.docstring_dataset(tmp_path / "data", SMALL, Silent())
    docs = {doc["_id"]: doc["text"] for doc in jsonl(tmp_path / "data" / "corpus.jsonl")}
    queries = {query["_id"]: query["text"] for query in jsonl(tmp_path / "data" / "queries.jsonl")}
    assert found["passages"] == len(docs) == len(queries) == SMALL.passages
    assert found["train"] + found["dev"] + found["test"] == len(docs)
    modules: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        lines = (tmp_path / "data" / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
        for line in lines:
            query_id, doc_id, _ = line.split("\t")
            assert query_id == f"q:{doc_id}"
            modules.setdefault(doc_id.rsplit(".", 1)[0], set()).add(split)
    assert all(len(splits) == 1 for splits in modules.values())
    assert len(set(queries.values())) == len(queries)
    for doc_id, text in docs.items():
        query = queries[f"q:{doc_id}"].lower().rstrip(".")
        assert query not in " ".join(text.lower().split())
    again = docstrings.docstring_dataset(tmp_path / "data", SMALL, Silent())
    assert again["up_to_date"]


def pair(name, query, passage):
    return docstrings.Pair(name, name.rsplit(".", 1)[0], query, passage)


def test_mirrored_modules_give_one_pair():
    words = " ".join(f"word{n}" for n in range(60))
    pairs = [
        pair("posixpath.join", "Join two or more components", words),
        pair("ntpath.join", "Join two (or more) components", words.upper() + "!"),
        pair("other.join", "Join two or more components", "another text altogether"),
        pair("last.split", "Split a path in two", "a third text"),
    ]
    kept = docstrings._distinct(iter(pairs))
    assert [found.name for found in kept] == ["posixpath.join", "last.split"]


def test_docstrings_that_make_no_pair():
    make = docstrings._pair
    rest = "one two three four five six seven eight nine ten eleven twelve"
    assert make("m.f", "m", f"Return what was asked for.\n\n{rest}") is not None
    assert make("m.f", "m", None) is None
    assert make("m.f", "m", "Return what was asked for.") is None
    assert make("m.f", "m", f"Too short.\n\n{rest}") is None
    assert make("m.f", "m", f"Return what\nwas asked for.\n\n{rest}") is None
    given_away = f"Return what was asked for.\n\nIt will return what was\nasked for: {rest}"
    assert make("m.f", "m", given_away) is None


def test_the_demo_from_end_to_end(tmp_path, checkpoint):
    """Two steps a segment teach nothing; every artifact and row is there, and again at once."""
    config = replace(
        SMALL, steps=2, segments=1, batch_size=4, depth=10,
        query_length=12, passage_length=24,
    )  # fmt: skip
    found = demo(tmp_path / "demo", checkpoint, config)
    assert [row[""] for row in found["rows"]] == [
        "BM25", "start", "warm-up", "ANCE, generation 1",
    ]  # fmt: skip
    assert all(0 <= row["RR@10"] <= 1 for row in found["rows"])
    assert "RR@10 on test went from" in found["verdict"]
    assert found["next"][0].startswith('echo "')
    again = demo(tmp_path / "demo", checkpoint, config)
    assert json.dumps(again) == json.dumps(found)
