"""`ance read`: answers from a run's top passages, and their exact match and F1."""

import json

import pytest

from ance_cli.evaluation.reading import exact_match, f1
from tests.world import jsonl, make_cross_encoder, make_reader, write_jsonl

SPLIT = ["--data", "data", "--split", "dev"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return make_reader(tmp_path_factory.mktemp("reader"), "extractive")


@pytest.fixture
def world(inside, dataset):
    """The small dataset with answers to all dev queries but q31, and a run that lacks q30."""
    queries = jsonl(dataset / "queries.jsonl")
    for query in queries[24:31]:
        query["metadata"] = {"answers": [query["text"].split()[0], "the old bread"]}
    write_jsonl(dataset / "queries.jsonl", queries)
    lines = [
        f"q{query} Q0 d{(query + place) % 64} {place} {9 - place} t\n"
        for query in [*range(24, 30), 31]
        for place in range(5)
    ]
    (inside.cwd / "dev.trec").write_text("".join(lines))
    return inside


def read(world, reader, *more, code=0):
    arguments = ["dev.trec", *SPLIT, "--reader", reader, "-o", "a.jsonl", "--gpus", "none"]
    return world("read", *arguments, "--json", *more, code=code)


def test_answers_with_their_passage_and_their_quality(world, reader):
    summary = json.loads(read(world, reader, "--depth", 3).stdout)
    records = jsonl(world.cwd / "a.jsonl")
    assert [record["query_id"] for record in records] == [f"q{n}" for n in range(24, 32)]
    texts = {record["_id"]: record["text"] for record in jsonl(world.cwd / "data/corpus.jsonl")}
    queries = {record["_id"]: record for record in jsonl(world.cwd / "data/queries.jsonl")}
    for record in records:
        query = queries[record["query_id"]]
        assert record["question"] == query["text"]
        number = int(record["query_id"][1:])
        if number == 30:
            assert record["answer"] is record["doc_id"] is record["score"] is None
            assert record["exact_match"] == record["f1"] == 0
            continue
        assert record["answer"] and record["answer"] in texts[record["doc_id"]]
        assert record["doc_id"] in {f"d{(number + place) % 64}" for place in range(3)}
        if number == 31:
            assert "exact_match" not in record
        else:
            gold = query["metadata"]["answers"]
            assert record["exact_match"] == exact_match(record["answer"], gold)
            assert record["f1"] == f1(record["answer"], gold)
    measured = [record for record in records if "f1" in record]
    assert len(measured) == 7 and summary["queries"] == 8
    assert summary["queries_without_an_answer"] == 1
    for measure in ("exact_match", "f1"):
        mean = sum(record[measure] for record in measured) / 7
        assert summary[measure]["mean"] == pytest.approx(mean)
        assert summary[measure]["low"] <= mean <= summary[measure]["high"]


def test_up_to_date_until_something_that_shapes_it_changes(world, reader):
    assert "1 of 8 queries have no answer; the means leave them out" in read(world, reader).stderr
    again = json.loads(read(world, reader).stdout)
    assert again["up_to_date"] is True and "exact_match" in again
    assert "depth 20 -> 2" in read(world, reader, "--depth", 2, code=4).stderr
    assert "answer_tokens 0 -> 3" in read(world, reader, "--answer-tokens", 3, code=4).stderr
    run = world.cwd / "dev.trec"
    run.write_text(run.read_text().replace("q24 Q0 d24 0 9", "q24 Q0 d9 0 9"))
    assert "a.jsonl: exists with other settings: run" in read(world, reader, code=4).stderr
    read(world, reader, "--force")
    queries = world.cwd / "data" / "queries.jsonl"
    queries.write_text(queries.read_text().replace("old bread", "new bread"))
    assert "with other settings: answers" in read(world, reader, code=4).stderr


def test_without_a_split_the_runs_queries_and_without_answers_no_measures(world, reader):
    queries = jsonl(world.cwd / "data/queries.jsonl")
    for query in queries:
        query.pop("metadata", None)
    write_jsonl(world.cwd / "data/queries.jsonl", queries)
    found = world("read", "dev.trec", "--data", "data", "--reader", reader, "-o", "-")
    records = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(records) == 7 and all("f1" not in record for record in records)
    assert "no measure is computed" in found.stderr


def test_a_generated_answer_names_the_first_passage_that_contains_it(world, tmp_path):
    folder = make_reader(tmp_path / "seq2seq", "seq2seq")
    read(world, folder, "--answer-tokens", 1, "--dtype", "fp32")
    texts = {r["_id"]: r["text"].split() for r in jsonl(world.cwd / "data/corpus.jsonl")}
    for record in jsonl(world.cwd / "a.jsonl"):
        number = int(record["query_id"][1:])
        if record["answer"]:
            ranked = [f"d{(number + place) % 64}" for place in range(5)]
            holding = [doc_id for doc_id in ranked if record["answer"] in texts[doc_id]]
            assert record["doc_id"] == (holding[0] if holding else None)


def test_dry_run_and_what_is_refused(world, reader, checkpoint, tmp_path):
    assert json.loads(read(world, reader, "--dry-run").stdout)["kind"] == "answers"
    assert not (world.cwd / "a.jsonl").exists()
    assert "expected a reader" in read(world, checkpoint, code=3).stderr
    other = make_cross_encoder(tmp_path / "cross")
    assert "BertForSequenceClassification; expected a reader" in read(world, other, code=3).stderr
    assert "no such checkpoint folder" in read(world, "nosuch", code=3).stderr
    assert "--depth must be at least 1" in read(world, reader, "--depth", 0, code=2).stderr
    found = read(world, reader, "--split", "train", code=3)
    assert "dev.trec: has none of the 24 queries of the split" in found.stderr
    found = read(world, reader, "-o", "data/queries.jsonl", "-f", code=2)
    assert "which this command reads" in found.stderr
    (world.cwd / "dev.trec").write_text("q24 Q0 zz 1 1 t\n")
    assert "dev.trec: document 'zz' is not in the corpus" in read(world, reader, code=3).stderr
    (world.cwd / "dev.trec").write_text("zz Q0 d1 1 1 t\n")
    found = world("read", "dev.trec", "--data", "data", "--reader", reader, "-o", "b", code=3)
    assert "dev.trec: query 'zz' is not among the queries" in found.stderr
    assert not (world.cwd / "a.jsonl").exists() and not (world.cwd / "b").exists()
