"""Each text once with its passages, and the round trip by a brute-force twin."""

import json
import random

from ance_cli.formats.dataset import read_qrels, read_queries
from ance_cli.query_generation.pool import QueryPool
from ance_cli.query_generation.writing import Written
from tests.world import jsonl


def test_a_text_is_one_query_with_all_of_its_passages(tmp_path):
    pool = QueryPool()
    pool.add("a", Written(["river", "river", ""]))
    pool.add("b", Written(["comet", "river", "bread"]))
    pool.add("c", Written(refused="no"))
    assert pool.queries == {"a-q1": "river", "b-q1": "comet", "b-q3": "bread"}
    assert pool.stats == {
        "passages": 3, "refused": 1, "generated": 6, "empty": 1, "duplicates": 2, "filtered": 0,
        "queries": 3, "labels": 4,
    }  # fmt: skip
    pool.write(tmp_path, "dev")
    assert jsonl(tmp_path / "queries.jsonl")[0] == {
        "_id": "a-q1", "text": "river", "metadata": {"generated": True},
    }  # fmt: skip
    queries = read_queries(tmp_path / "queries.jsonl")
    assert queries == pool.queries
    assert read_qrels(tmp_path / "qrels" / "dev.tsv", queries) == {
        "a-q1": {"a": 1, "b": 1}, "b-q1": {"b": 1}, "b-q3": {"b": 1},
    }  # fmt: skip


def test_the_round_trip_keeps_the_pairs_that_are_found():
    rng = random.Random(0)
    docs = [f"d{n}" for n in range(20)]
    written = {doc: [f"text {rng.randrange(25)}" for _ in range(2)] for doc in docs}
    pool = QueryPool()
    for doc, texts in written.items():
        pool.add(doc, Written(texts))
    before = pool.queries
    hits = {name: [(doc, 1.0) for doc in rng.sample(docs, 6)] for name in before}
    pairs = {(text, doc) for doc, texts in written.items() for text in texts}
    found = {(before[name], doc) for name, listed in hits.items() for doc, _ in listed}
    pool.keep_found(hits)
    assert 0 < len(pairs & found) < len(pairs)
    assert pool.stats["labels"] == len(pairs & found)
    assert pool.stats["filtered"] == len(pairs - found)
    assert set(pool.queries.values()) == {text for text, _ in pairs & found}
    assert json.dumps(pool.queries) == json.dumps(
        {name: text for name, text in before.items() if text in pool.queries.values()}
    ), "ids and order stay"
