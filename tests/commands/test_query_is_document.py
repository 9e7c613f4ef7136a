"""Queries that are documents of the corpus, as in ArguAna and Quora, through every command that
draws negatives or measures."""

import json

import pytest

from ance_cli.formats.trec import read_run
from tests.world import jsonl, make_dataset, write_jsonl

TRAIN = {f"q{n}" for n in range(24)}
SETTINGS = ["--data", "data", "--split", "train", "--depth", 20, "--negatives", 6, "-q"]


@pytest.fixture
def own(inside):
    """query_id -> the documents that are the query: by id (d), by text (t), with a copy (c)."""
    data = make_dataset(inside.cwd / "data", copies=False)
    docs = {doc["_id"]: doc for doc in jsonl(data / "corpus.jsonl")}
    queries = {query["_id"]: query for query in jsonl(data / "queries.jsonl")}
    found = {}
    for number, query_id in enumerate(sorted(TRAIN)):
        text = f"{queries[query_id]['text']} of the old comet"
        if number % 3 == 0:  # the same id and a title
            docs[query_id] = {"_id": query_id, "title": "bread", "text": text}
            found[query_id] = {query_id}
        elif number % 3 == 1:  # another id, other white space
            docs[f"t{number}"] = {"_id": f"t{number}", "title": "", "text": f"  {text}\n"}
            found[query_id] = {f"t{number}"}
        else:  # the title is part of the query; a copy of the document
            title, _, rest = text.partition(" ")
            docs[f"c{number}"] = {"_id": f"c{number}", "title": title, "text": rest}
            docs[f"cc{number}"] = {"_id": f"cc{number}", "title": "falcon", "text": rest}
            found[query_id] = {f"c{number}", f"cc{number}"}
        queries[query_id]["text"] = text
    write_jsonl(data / "corpus.jsonl", list(docs.values()))
    write_jsonl(data / "queries.jsonl", list(queries.values()))
    return found


def check(folder, name, own):
    records = jsonl(folder / f"{name}.jsonl")
    assert records and {record["query_id"] for record in records} == TRAIN
    for record in records:
        assert record["negative_ids"] and not own[record["query_id"]] & set(record["negative_ids"])
    return json.loads((folder / f"{name}.audit.json").read_text())["removed_from_candidates"]


@pytest.mark.parametrize("sampler", ["uniform", "top"])
def test_a_query_is_never_its_own_negative(inside, own, checkpoint, sampler):
    arguments = [*SETTINGS[:-1], "--sampler", sampler]
    shown = inside("bm25-negatives", *arguments, "--engine", "bm25s", "-o", "bm25.jsonl").stderr
    assert "24 of 24 queries are documents of the corpus" in shown
    assert check(inside.cwd, "bm25", own)["bm25"]["the_query_itself"] == 24 + 8
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb", "-q")
    mix = ["--mix", "ann:2,bm25:2,lookahead:1,random:1"] if sampler == "uniform" else []
    inside("mine", "--ckpt", checkpoint, "--embeddings", "emb", *arguments, *mix, "--engine",
           "bm25s", "-o", "mined.jsonl")  # fmt: skip
    removed = check(inside.cwd, "mined", own)
    assert removed["ann"]["the_query_itself"] > 0


def test_a_run_refreshes_and_trains_without_the_queries_themselves(inside, own, checkpoint):
    inside("bm25-negatives", *SETTINGS, "--engine", "bm25s", "-o", "bm25.jsonl")
    foreign = jsonl(inside.cwd / "bm25.jsonl")
    for record in foreign:
        record["negative_ids"] = [*sorted(own[record["query_id"]]), *record["negative_ids"][:4]]
    write_jsonl(inside.cwd / "foreign.jsonl", [
        {name: record[name] for name in ("query_id", "positive_id", "negative_ids")}
        for record in foreign
    ])  # fmt: skip
    train = ["train-segment", "foreign.jsonl", "--data", "data", "--split", "train", "--ckpt",
             checkpoint, "--steps", 1, "--batch-size", 4, "-o", "run"]  # fmt: skip
    shown = inside(*train).stderr
    total = sum(len(own[record["query_id"]]) for record in foreign)
    assert f"{total} negatives are the query itself and are left out" in shown
    inside("refresh", "run", "--depth", 20, "--negatives", 6, "-q")
    newest = inside.cwd / "run" / "generations" / "0001"
    for record in jsonl(newest / "negatives.jsonl"):
        assert not own[record["query_id"]] & set(record["negative_ids"])


def test_eval_counts_queries_that_retrieve_themselves_and_leaves_them_out(inside, own):
    inside("search", "--engine", "bm25s", "--data", "data", "--split", "train", "--depth", 20,
           "-o", "run.trec", "-q")  # fmt: skip
    measured = ["eval", "run.trec", "--qrels", "data/qrels/train.tsv", "--measures", "RR@10"]
    shown = inside(*measured).stderr
    assert "run.trec: 8 of 24 judged queries retrieve the document with their own id" in shown
    assert "--ignore-identical-ids" in shown
    lines = [
        line for line in (inside.cwd / "run.trec").read_text().splitlines()
        if line.split()[0] != line.split()[2]
    ]  # fmt: skip
    assert len(lines) == sum(map(len, read_run(inside.cwd / "run.trec").values())) - 8
    (inside.cwd / "without.trec").write_text("".join(f"{line}\n" for line in lines))
    left_out = json.loads(inside(*measured, "--ignore-identical-ids", "--json").stdout)
    measured[1] = "without.trec"
    without = json.loads(inside(*measured, "--json").stdout)
    assert left_out["runs"][0]["measures"] == without["runs"][0]["measures"]
    assert left_out["runs"][0]["queries_that_retrieve_themselves"] == 8
    assert without["runs"][0]["queries_that_retrieve_themselves"] == 0
