"""`ance search`: where queries come from, and hits with their texts."""

import json
import os
import pty
import subprocess
import sys

import pytest

from tests.world import jsonl

BM25 = ["search", "--engine", "bm25s", "--data", "data", "--depth", 3]


@pytest.fixture
def passages(dataset):
    return {each["_id"]: each for each in jsonl(dataset / "corpus.jsonl")}


def test_a_question_is_answered_with_texts_by_a_checkpoint(ance, inside, passages, checkpoint):
    """The hits are those of the same question from stdin."""
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    search = ["search", "--ckpt", checkpoint, "--embeddings", "emb", "--data", "data"]
    found = inside(*search, " river word3", "old bread", "--depth", 3, "--json").stdout
    answers = json.loads(found)["queries"]
    assert [(each["query_id"], each["text"]) for each in answers] == [
        ("1", "river word3"), ("2", "old bread"),
    ]  # fmt: skip
    run = ance(*search, "--queries", "-", "--depth", 3, stdin="river word3\nold bread\n").stdout
    lines = [line.split() for line in run.splitlines()]
    hits = [(answer["query_id"], hit) for answer in answers for hit in answer["hits"]]
    assert len(hits) == 6
    for (query_id, hit), line in zip(hits, lines, strict=True):
        assert [query_id, hit["doc_id"], str(hit["rank"])] == [line[0], line[2], line[3]]
        assert hit["score"] == pytest.approx(float(line[4]), abs=1e-5)
        passage = passages[hit["doc_id"]]
        assert (hit["title"], hit["text"]) == (passage["title"], passage["text"])
    without = ["search", "--ckpt", checkpoint, "--embeddings", "emb", "river", "--depth", 1]
    (hit,) = json.loads(inside(*without, "--json").stdout)["queries"][0]["hits"]
    assert hit["title"] is None and hit["text"] is None


def test_a_pipe_gets_a_run_and_a_terminal_the_hits(inside, passages):
    assert inside(*BM25, "river word8").stdout.split()[:4] == ["1", "Q0", "d8", "1"]
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "ance_cli", *map(str, BM25), "river word8", "-q"]
    subprocess.run(words, cwd=inside.cwd, stdout=theirs, stderr=subprocess.PIPE, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "river word8" in shown and "d8" in shown and "river 8 - river word8" in shown


def test_a_file_of_plain_lines_is_read_as_stdin_is(ance, inside, dataset):
    lines = "river word8\n\nviolin word9\n"
    (ance.cwd / "questions.txt").write_text(lines)
    found = inside(*BM25, "--queries", "questions.txt").stdout
    assert [line.split()[:3] for line in found.splitlines()][::3] == [
        ["1", "Q0", "d8"], ["3", "Q0", "d9"],
    ]  # fmt: skip
    assert found == ance(*BM25, "--queries", "-", stdin=lines).stdout


def test_a_dry_run_answers_no_question(inside, dataset):
    found = json.loads(inside(*BM25, "river", "--dry-run", "--json").stdout)
    assert found["dry_run"] and "queries" not in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["river", "--queries", "data/queries.jsonl"], "either the questions in the command, or"),
        (["river", "--queries", "-"], "either the questions in the command, or"),
        (["river", "--split", "dev"], "either the questions in the command, or"),
        (["river", "--qrels", "data/qrels/dev.tsv"], "either the questions in the command, or"),
        (["river", " "], "a question is empty"),
    ],
)
def test_a_question_and_other_queries_are_refused(inside, dataset, words, said):
    assert said in " ".join(inside(*BM25, *words, code=2).stderr.split())
