"""Texts that are longer than their side's length are counted wherever they are encoded."""

import json
import re

import pytest

from tests.world import AnceInside, jsonl, make_cross_encoder, make_dataset, make_tokenizer

QUERY_LENGTH, PASSAGE_LENGTH, PAIR_LENGTH = 3, 16, 20


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("cut")
    make_dataset(folder / "data")
    make_cross_encoder(folder / "cross")
    program = AnceInside(folder)
    program("checkpoint", "convert", checkpoint, "--query-length", QUERY_LENGTH,
            "--passage-length", PASSAGE_LENGTH, "-o", "ckpt")  # fmt: skip
    return program


def tokens(*texts):
    """Twin: how many tokens a text has, or a pair of texts, with the special ones."""
    return len(make_tokenizer()(*texts)["input_ids"])


def counted(world, query_ids):
    """The sentences about the passages, and about the queries with these ids."""
    docs = [f"{doc['title']} {doc['text']}" for doc in jsonl(world.cwd / "data/corpus.jsonl")]
    cut = sum(tokens(text) > PASSAGE_LENGTH for text in docs)
    texts = {query["_id"]: query["text"] for query in jsonl(world.cwd / "data/queries.jsonl")}
    queries = sum(tokens(texts[name]) > QUERY_LENGTH for name in query_ids)
    assert 0 < cut < 64 and queries
    return (
        f"{cut} of 64 passages have more than 16 tokens and are cut (--passage-length)",
        f"{queries} of {len(query_ids)} queries have more than 3 tokens and are cut "
        "(--query-length)",
    )  # fmt: skip


def test_every_command_that_encodes_counts_them(world):
    passages, dev = counted(world, [f"q{n}" for n in range(24, 32)])
    _, train = counted(world, [f"q{n}" for n in range(24)])
    model = ["--data", "data", "--ckpt", "ckpt"]
    made = world("encode", *model, "-o", "emb", "--json")
    assert passages in made.stderr
    assert json.loads(made.stdout)["cut"] == int(passages.split()[0])
    assert dev in world("encode", *model, "--side", "query", "--split", "dev", "-o", "q").stderr
    tokenized = json.loads(world("tokenize", *model, "-o", "tokens", "--json").stdout)
    assert tokenized["cut"] == int(passages.split()[0])
    vectors = ["--embeddings", "emb"]
    found = world("search", *model, *vectors, "--split", "dev", "--depth", 5, "-o", "dev.trec")
    assert dev in found.stderr
    mined = world("mine", *model, *vectors, "--depth", 9, "--negatives", 2, "-o", "ann.jsonl")
    assert train in mined.stderr
    trained = world("train-segment", "ann.jsonl", *model, "--steps", 1, "--batch-size", 4,
                    "-o", "run").stderr  # fmt: skip
    assert passages in trained and train in trained
    refreshed = world("refresh", "run", "--depth", 9, "--negatives", 2).stderr
    assert passages in refreshed and train in refreshed and dev in refreshed


def test_passages_and_pairs_that_are_reranked_are_counted(world):
    texts = {doc["_id"]: f"{doc['title']} {doc['text']}"
             for doc in jsonl(world.cwd / "data/corpus.jsonl")}  # fmt: skip
    queries = {query["_id"]: query["text"] for query in jsonl(world.cwd / "data/queries.jsonl")}
    pairs = [(f"q{q}", f"d{d}") for q in (24, 25, 26) for d in range(q, q + 6)]
    (world.cwd / "some.trec").write_text(
        "".join(f"{query} Q0 {doc} {rank} {-rank} x\n" for rank, (query, doc) in enumerate(pairs))
    )
    docs = {doc for _, doc in pairs}
    cut = sum(tokens(texts[doc]) > PASSAGE_LENGTH for doc in docs)
    rerank = ["rerank", "some.trec", "--data", "data"]
    found = world(*rerank, "--ckpt", "ckpt", "-o", "dual.trec").stderr
    assert f"{cut} of {len(docs)} passages have more than 16 tokens" in found
    cut = sum(tokens(queries[query], texts[doc]) > PAIR_LENGTH for query, doc in pairs)
    cross = ["--cross-encoder", "cross", "--pair-length", PAIR_LENGTH]
    found = world(*rerank, *cross, "-o", "cross.trec").stderr
    assert 0 < cut < len(pairs)
    assert f"{cut} of {len(pairs)} pairs have more than 20 tokens and are cut" in found


def test_pairs_that_a_teacher_scores_are_counted(world):
    found = world("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20,
                  "--negatives", 2, "--teacher", "cross", "--pair-length", PAIR_LENGTH,
                  "-o", "bm25.jsonl")  # fmt: skip
    cut, total = map(
        int, re.search(r"(\d+) of (\d+) pairs have more than 20", found.stderr).groups()
    )
    scored = [
        (record["query_id"], doc)
        for record in jsonl(world.cwd / "bm25.jsonl")
        for doc in (record["positive_id"], *record["negative_ids"])
    ]
    texts = {doc["_id"]: f"{doc['title']} {doc['text']}"
             for doc in jsonl(world.cwd / "data/corpus.jsonl")}  # fmt: skip
    queries = {query["_id"]: query["text"] for query in jsonl(world.cwd / "data/queries.jsonl")}
    assert total == len(scored)
    assert cut == sum(tokens(queries[query], texts[doc]) > PAIR_LENGTH for query, doc in scored)
