"""Denoising with the real cross-encoder, on real text."""

import json

import pytest

from tests.world import jsonl, write_jsonl


@pytest.mark.realdata
@pytest.mark.long
def test_the_real_cross_encoder_refuses_what_answers_the_question(ance, test_data, test_weights):
    """SQuAD: paragraphs of one article answer each other's questions; each was judged for one."""
    queries = jsonl(test_data / "squad" / "queries.jsonl")
    corpus = jsonl(test_data / "squad" / "corpus.jsonl")
    lines = (test_data / "squad" / "qrels" / "dev.tsv").read_text().splitlines()[:9]
    judged = {line.split("\t")[0] for line in lines[1:]}
    data = ance.cwd / "data"
    write_jsonl(data / "queries.jsonl", [q for q in queries if q["_id"] in judged])
    write_jsonl(data / "corpus.jsonl", corpus)
    (data / "qrels").mkdir()
    (data / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    draw = ["bm25-negatives", "--data", "data", "--engine", "bm25s", "--sampler", "top",
            "--negatives", 4, "--depth", 20]  # fmt: skip
    teacher = ["--teacher", test_weights / "ms-marco-MiniLM-L-12-v2"]
    ance(*draw, *teacher, "-o", "scored.jsonl")
    ance(*draw, *teacher, "--teacher-max", 0.5, "-o", "denoised.jsonl")
    scored, denoised = jsonl(ance.cwd / "scored.jsonl"), jsonl(ance.cwd / "denoised.jsonl")
    positives = [record["teacher_positive_score"] for record in scored]
    negatives = [score for record in scored for score in record["teacher_scores"]]
    assert sorted(positives)[len(positives) // 2] > sorted(negatives)[len(negatives) // 2] + 3
    refused = {
        (record["query_id"], doc)
        for record in scored
        for doc, score in zip(record["negative_ids"], record["teacher_scores"], strict=True)
        if score > 0
    }
    kept = {(r["query_id"], doc) for r in denoised for doc in r["negative_ids"]}
    assert refused and not refused & kept
    assert all(score <= 0 for record in denoised for score in record["teacher_scores"])
    audit = json.loads((ance.cwd / "denoised.audit.json").read_text())
    assert audit["removed_from_candidates"]["bm25"]["teacher"] >= len(refused)
