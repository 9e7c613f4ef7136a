"""`ance generate-queries`: a dataset whose queries a model wrote."""

import gzip
import json
import shutil
import signal
import sys
import time

import pytest

from ance_cli.formats.journal import RECORDS
from tests.chat_server import (  # noqa: F401  (a fixture)
    KEY,
    MODEL,
    chat_that_is_asked_once,
    first_words,
)
from tests.world import jsonl, make_reader, tree

pytest.importorskip("openai")

BM25 = ["--engine", "bm25s"]
KEEP_ALL = ["--round-trip-depth", 0]


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    return {
        kind: make_reader(tmp_path_factory.mktemp(kind), kind) for kind in ("seq2seq", "causal")
    }


@pytest.fixture
def ask(inside, dataset, chat):
    """The command with the endpoint; it returns the summary."""

    def ask(*more, code=0):
        found = inside("generate-queries", "--data", "data", "--endpoint", chat.url, "--model",
                       MODEL, "--json", "-o", "out", *more, code=code)  # fmt: skip
        return found if code else json.loads(found.stdout)

    return ask


@pytest.fixture
def write(inside, dataset, writers):
    """The command with a local model."""

    def write(kind, *more, output="out", code=0):
        return inside("generate-queries", "--data", "data", "--model", writers[kind], "--gpus",
                      "none", "--max-new-tokens", 6, "-o", output, *more, code=code)  # fmt: skip

    return write


def labels(folder, split="train"):
    """(query text, doc_id) of each label, in order."""
    texts = {record["_id"]: record["text"] for record in jsonl(folder / "queries.jsonl")}
    rows = (folder / "qrels" / f"{split}.tsv").read_text().splitlines()
    assert rows[0] == "query-id\tcorpus-id\tscore"
    return [(texts[q], d) for q, d, grade in (row.split("\t") for row in rows[1:]) if grade == "1"]


def test_a_dataset_like_any_other(ask, chat, inside, dataset):
    summary = ask(*BM25)
    out = inside.cwd / "out"
    assert (out / "corpus.jsonl").read_bytes() == (dataset / "corpus.jsonl").read_bytes()
    docs = {record["_id"]: record for record in jsonl(out / "corpus.jsonl")}
    pairs = labels(out)
    # d63 is a copy of d0: one query with two positives
    assert [doc for text, doc in pairs if text == first_words(docs["d0"]["text"])] == ["d0", "d63"]
    assert len(pairs) == 64
    assert all(text == first_words(docs[doc]["text"]) for text, doc in pairs)
    assert {name: summary[name] for name in ("passages", "generated", "duplicates", "filtered",
                                             "queries", "labels", "refused", "empty")} == {
        "passages": 64, "generated": 64, "duplicates": 1, "filtered": 0, "queries": 63,
        "labels": 64, "refused": 0, "empty": 0,
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    shaped = manifest["shaped_by"]
    assert (shaped["endpoint"], shaped["model"]) == (chat.url, MODEL)
    assert shaped["prompt"].startswith("Write one search query") and shaped["seed"] == 42
    assert (shaped["engine"], shaped["round_trip_depth"]) == ("bm25s", 3)
    assert not any(KEY in data.decode() for data in tree(out).values())
    asked = len(chat.bodies)
    assert ask(*BM25)["up_to_date"] and len(chat.bodies) == asked
    inside("bm25-negatives", "--data", "out", "--split", "train", *BM25, "-o", "negatives.jsonl")
    assert len(jsonl(inside.cwd / "negatives.jsonl")) == 64


def test_the_round_trip_is_a_search_for_each_query(write, inside):
    """The pairs that are kept are those that `ance search` finds."""
    write("seq2seq", *KEEP_ALL, "--temperature", 1, output="all")
    write("seq2seq", *BM25, "--round-trip-depth", 20, "--temperature", 1, output="kept")
    inside("search", "--data", "all", "--split", "train", *BM25, "--depth", 20, "-o", "all.trec")
    hits = {(row.split()[0], row.split()[2]) for row in open(inside.cwd / "all.trec")}
    ids = {record["text"]: record["_id"] for record in jsonl(inside.cwd / "all" / "queries.jsonl")}
    everything = labels(inside.cwd / "all")
    expected = [(text, doc) for text, doc in everything if (ids[text], doc) in hits]
    assert labels(inside.cwd / "kept") == expected
    assert 0 < len(expected) < len(everything)
    stats = json.loads((inside.cwd / "kept" / "manifest.json").read_text())["stats"]
    assert stats["filtered"] == len(everything) - len(expected)


def test_a_dense_retriever_makes_the_round_trip(ask, inside, checkpoint):
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    dense = ["--engine", "dense", "--ckpt", checkpoint, "--gpus", "none"]
    found = ask(*dense, code=2)
    assert "exactly one of --embeddings DIR and --index DIR" in found.stderr
    summary = ask(*dense, "--embeddings", "emb", "--round-trip-depth", 10)
    inside("search", "--queries", "out/queries.jsonl", "--ckpt", checkpoint, "--data", "data",
           "--embeddings", "emb", "--depth", 10, "--gpus", "none", "-o", "d.trec")  # fmt: skip
    assert 0 < summary["queries"] < 63
    hits = {(row.split()[0], row.split()[2]) for row in open(inside.cwd / "d.trec")}
    ids = {record["text"]: record["_id"] for record in jsonl(inside.cwd / "out" / "queries.jsonl")}
    assert all((ids[text], doc) in hits for text, doc in labels(inside.cwd / "out"))
    # the corpus is the same bytes, so the embeddings fit the result
    inside("mine", "--data", "out", "--ckpt", checkpoint, "--embeddings", "emb", "--depth", 9,
           "-o", "ann.jsonl")  # fmt: skip
    inside("encode", "--ckpt", checkpoint, "--data", "data", "--passage-length", 9, "-o", "short")
    found = ask(*dense, "--embeddings", "short", "--force", code=4)
    assert "the vectors were made by another passage encoder" in found.stderr


def test_a_sample_is_drawn_by_passage(ask, chat, inside):
    ask(*KEEP_ALL, "--sample", 10)
    ten = {doc for _, doc in labels(inside.cwd / "out")}
    ask(*KEEP_ALL, "--sample", 20, "--force", "--split", "dev")
    twenty = [doc for _, doc in labels(inside.cwd / "out", "dev")]
    assert len(ten) == 10 and len(twenty) == 20 and ten < set(twenty)
    assert twenty == sorted(twenty, key=lambda doc: int(doc[1:])), "the corpus' order"
    ask(*KEEP_ALL, "--sample", 10, "--seed", 1, "--force")
    assert {doc for _, doc in labels(inside.cwd / "out")} != ten
    found = inside("generate-queries", "--data", "data", "--endpoint", chat.url, "--model", MODEL,
                   *KEEP_ALL, "--sample", 99, "-o", "out", "--force")  # fmt: skip
    assert "--sample 99: the corpus has only 64 passages with a text" in found.stderr


def test_a_compressed_corpus_passages_without_text_and_empty_answers(ask, chat, inside, dataset):
    records = jsonl(dataset / "corpus.jsonl")
    records[5] |= {"title": "", "text": " "}
    packed = gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())
    (inside.cwd / "c.jsonl.gz").write_bytes(packed)
    chat.answer = lambda prompt: "" if "word9 " in prompt else first_words(prompt)
    arguments = ["generate-queries", "--corpus", "c.jsonl.gz", "--endpoint", chat.url, "--model",
                 MODEL, *BM25, "--concurrency", 3, "-o", "packed"]  # fmt: skip
    found = inside(*arguments)
    assert "1 of 63 answers are empty" in found.stderr
    stats = json.loads((inside.cwd / "packed" / "manifest.json").read_text())["stats"]
    assert (stats["passages"], stats["passages_without_text"], stats["empty"]) == (63, 1, 1)
    assert (inside.cwd / "packed" / "corpus.jsonl.gz").read_bytes() == packed
    inside("bm25-negatives", "--data", "packed", *BM25, "-o", "negatives.jsonl")


def test_a_refused_passage_stops_the_command_or_is_left_out(ask, chat, inside):
    chat.error = lambda prompt: (400, "not this one") if "word7 " in prompt else None
    found = ask(*BM25, code=3)
    assert "document 'd7': the endpoint refused it" in found.stderr and "--skip-bad" in found.stderr
    summary = ask(*BM25, "--skip-bad")
    assert (summary["refused"], summary["labels"]) == (1, 63)
    earlier = [prompt for prompt in chat.prompts if any(f"word{n} " in prompt for n in range(1, 7))]
    assert len(earlier) == 6, "the answers before the refused passage are kept"
    chat.error = lambda prompt: (400, "none of them")
    found = ask(*BM25, "--skip-bad", "--force", code=3)
    assert "64 of 64 documents are left out, the first: 'd0': the endpoint" in found.stderr
    assert "passages 64, refused 64" in found.stderr


def test_what_was_written_serves_another_round_trip(ask, chat, inside):
    """A filter that leaves nothing does not cost the queries."""
    chat.answer = lambda prompt: f"violin {first_words(prompt)[-1]}"
    assert "no query is left" in ask("--sample", 1, *BM25, code=3).stderr
    assert "exists as an unfinished dataset" in ask(*BM25, code=4).stderr
    summary = ask("--sample", 1, *KEEP_ALL)
    assert summary["queries"] == 1 and len(chat.bodies) == 1


def test_the_key_the_model_and_the_address(ask, chat, monkeypatch):
    assert "the endpoint has no model 'none'" in ask(*BM25, "--model", "none", code=2).stderr
    found = ask(*BM25, "--endpoint", chat.url.removesuffix("/v1"), code=2)
    assert "is not the base URL" in found.stderr
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    found = ask(*BM25, code=2)
    assert "refused the key" in found.stderr and "sk-other" not in found.stderr
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install 'ance-cli[openai]'" in ask(*BM25, code=2).stderr
    assert not chat.bodies


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompt", "a query for {title}"], "has no {text}: the model would not see the passage"),
        (["--per-passage", 2], "--per-passage 2 with --temperature 0 writes the same query"),
        ([*KEEP_ALL, "--engine", "bm25s"], "--engine bm25s searches nothing"),
        ([*KEEP_ALL, "--embeddings", "e"], "need --engine dense"),
        (["--ckpt", "c"], "--ckpt, --embeddings and --index need --engine dense"),
        (["--engine", "dense"], "--engine dense needs --ckpt"),
        (["--batch-size", 2, "--endpoint", "http://x/v1"], "--batch-size is for local models"),
        (["--concurrency", 2], "--concurrency needs --endpoint"),
        (["--endpoint", "localhost:8000"], "expected a URL such as http://localhost:8000/v1"),
        (["--endpoint", "http://[/v1"], "expected a URL such as"),
        (["--endpoint", "http://me:word@x/v1"], "the manifest records the URL"),
        (["--endpoint", "http://x/v1?key=1"], "set the key as OPENAI_API_KEY"),
        (["--split", "../x"], "--split '../x' cannot be the name of a file"),
        (["--split", ""], "--split '' cannot be the name of a file"),
        (["--sample", 0], "--sample must be at least 1"),
        (["-o", "data"], "data: would replace"),
        (["-o", "-"], "a dataset folder cannot be written to stdout"),
    ],
)  # fmt: skip
def test_what_cannot_be_or_would_be_ignored(write, inside, more, words):
    assert words in " ".join(write("causal", *more, code=2).stderr.split())
    assert sorted(path.name for path in inside.cwd.iterdir()) == ["data"]


def test_an_address_comes_from_no_file_that_was_not_named(ask, inside):
    """A stranger's ance.toml would get the key."""
    (inside.cwd / "ance.toml").write_text(
        '[generate-queries]\nmodel = "m"\nendpoint = "http://127.0.0.1:9/v1"\n'
    )
    found = inside("generate-queries", "--data", "data", "-o", "out", code=2)
    assert "endpoint" in found.stderr


def test_a_merged_dataset_stays_one(ask, inside, chat):
    shutil.copytree(inside.cwd / "data", inside.cwd / "other")
    inside("merge", "data:0.75", "other:0.25", "-o", "both")
    ask("--data", "both", *KEEP_ALL, "--sample", 30)
    assert (inside.cwd / "out" / "datasets.json").read_bytes() == (
        inside.cwd / "both" / "datasets.json"
    ).read_bytes()
    ids = [record["_id"] for record in jsonl(inside.cwd / "out" / "queries.jsonl")]
    assert {name.split("/")[0] for name in ids} == {"data", "other"}


# ---------------------------------------------------------------- killed and repeated


def killed(ance, arguments, records):
    """SIGKILL when the journal has so many records."""
    journal = ance.cwd / ".cut.journal.partial" / RECORDS
    process = ance.start(*arguments, "-o", "cut")
    until = time.monotonic() + 90
    while not journal.exists() or journal.read_bytes().count(b'"queries"') < records:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (ance.cwd / "cut").exists()
    return journal


def contents(folder):
    return {name: data for name, data in tree(folder).items() if name != "manifest.json"}


def test_a_killed_call_asks_an_endpoint_only_for_what_is_missing(ance, inside, dataset, chat):
    chat.delay = 0.05
    arguments = ["generate-queries", "--data", "data", "--endpoint", chat.url, "--model", MODEL,
                 *BM25, "--concurrency", 2]  # fmt: skip
    journal = killed(ance, arguments, 20)
    kept = journal.read_bytes().count(b'"queries"')
    before = len(chat.bodies)
    assert kept <= before <= kept + 4 * 2
    found = inside(*arguments, "-o", "cut")
    assert "cut: continuing an interrupted call" in found.stderr
    assert len(chat.bodies) - before == 64 - kept
    assert not journal.parent.exists()
    chat.delay = 0
    inside(*arguments, "-o", "whole")
    assert contents(inside.cwd / "cut") == contents(inside.cwd / "whole")


def test_a_killed_local_model_gives_the_bytes_of_an_uninterrupted_one(
    ance, inside, dataset, writers
):
    arguments = ["generate-queries", "--data", "data", "--model", writers["causal"], *KEEP_ALL,
                 "--temperature", 1, "--per-passage", 2, "--max-new-tokens", 20, "--batch-size", 4,
                 "--gpus", "none"]  # fmt: skip
    journal = killed(ance, arguments, 8)
    kept = journal.read_bytes()[:-5]  # and the last record is cut short
    journal.write_bytes(kept)
    found = inside(*arguments, "-o", "cut")
    assert "cut: continuing an interrupted call" in found.stderr
    inside(*arguments, "-o", "whole", "--threads", 1)
    assert contents(inside.cwd / "cut") == contents(inside.cwd / "whole")
    inside(*arguments, "-o", "large", "--batch-size", 64)
    assert contents(inside.cwd / "large") == contents(inside.cwd / "whole")
