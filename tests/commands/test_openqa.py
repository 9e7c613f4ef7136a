"""OpenQA from questions to answers, on real text, with DPR's own test of what holds an answer."""

import json

import pytest

from tests.world import jsonl, make_reader, write_jsonl


def part_of(source, folder):
    """24 train and 8 test questions of a collection, their documents and 40 others."""
    judged = {}
    for split, count in (("train", 24), ("test", 8)):
        header, *lines = (source / "qrels" / f"{split}.tsv").read_text().splitlines()
        judged[split] = [line.split("\t") for line in lines[:count]]
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join([header, *lines[:count]]) + "\n")
    labels = [label for own in judged.values() for label in own]
    asked, wanted = {label[0] for label in labels}, {label[1] for label in labels}
    corpus = jsonl(source / "corpus.jsonl")
    wanted |= {record["_id"] for record in corpus[:40]}
    write_jsonl(folder / "corpus.jsonl", [each for each in corpus if each["_id"] in wanted])
    queries = [each for each in jsonl(source / "queries.jsonl") if each["_id"] in asked]
    write_jsonl(folder / "queries.jsonl", queries)
    return judged


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", ["squad", "covidqa"])
def test_from_questions_to_answers(inside, checkpoint, test_data, tmp_path, name):
    from pyserini.eval.evaluate_dpr_retrieval import SimpleTokenizer, has_answers

    judged = part_of(test_data / name, inside.cwd / "data")
    texts = {record["_id"]: record["text"] for record in jsonl(inside.cwd / "data/corpus.jsonl")}
    answers = {
        record["_id"]: record["metadata"]["answers"]
        for record in jsonl(inside.cwd / "data" / "queries.jsonl")
    }
    tokenizer, known = SimpleTokenizer(), {}

    def holds(query_id, doc_id):
        if (query_id, doc_id) not in known:
            known[query_id, doc_id] = has_answers(texts[doc_id], answers[query_id], tokenizer)
        return known[query_id, doc_id]

    data, draw = ["--data", "data", "--gpus", "none"], ["--depth", 20, "--negatives", 4]
    inside("bm25-negatives", "--data", "data", "--engine", "bm25s", "--answers", *draw,
           "-o", "bm25.jsonl")  # fmt: skip
    inside("train-segment", "bm25.jsonl", *data, "--ckpt", checkpoint, "--steps", 2,
           "--batch-size", 4, "-o", "run")  # fmt: skip
    model = ["--ckpt", "run/latest", *data]
    inside("encode", *model, "-o", "emb")
    for flags, output in (([], "any.jsonl"), (["--answers"], "ann.jsonl")):
        inside("mine", *model, "--embeddings", "emb", *draw, *flags, "-o", output)
    held = {
        name: sum(
            holds(record["query_id"], doc_id)
            for record in jsonl(inside.cwd / name)
            for doc_id in record["negative_ids"]
        )
        for name in ("bm25.jsonl", "ann.jsonl", "any.jsonl")
    }
    assert held["bm25.jsonl"] == held["ann.jsonl"] == 0 < held["any.jsonl"]

    inside("search", *model, "--embeddings", "emb", "--split", "test", "-o", "test.trec")
    found = inside("eval", "test.trec", "--data", "data", "--split", "test", "--json",
                   "--measures", "Answers@1 Answers@20")  # fmt: skip
    measured = json.loads(found.stdout)["runs"][0]["measures"]
    ranked = {}
    for line in (inside.cwd / "test.trec").read_text().splitlines():
        ranked.setdefault(line.split()[0], []).append(line.split()[2])
    for depth in (1, 20):
        covered = [any(holds(query, doc) for doc in ranked[query][:depth]) for query in ranked]
        assert measured[f"Answers@{depth}"]["mean"] == pytest.approx(sum(covered) / len(covered))

    reader = make_reader(tmp_path / "reader", "extractive")
    found = inside("read", "test.trec", "--data", "data", "--split", "test", "--reader", reader,
                   "--depth", 2, "--gpus", "none", "-o", "answers.jsonl", "--json")  # fmt: skip
    summary, read = json.loads(found.stdout), jsonl(inside.cwd / "answers.jsonl")
    assert summary["queries"] == len(read) == len({label[0] for label in judged["test"]})
    assert summary["f1"]["mean"] == pytest.approx(sum(each["f1"] for each in read) / len(read))
    for each in read:
        assert each["doc_id"] in ranked[each["query_id"]][:2]
        assert each["answer"] in texts[each["doc_id"]]
