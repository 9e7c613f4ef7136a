"""Broken input through the binary: exit code, place, words, hint, and nothing under the output."""

import json
import shutil

import numpy as np
import pytest

from tests.world import Ance


@pytest.fixture
def ance(inside):
    """In this process: what a message says does not depend on it."""
    return inside


def lines_of(path):
    return path.read_text().splitlines()


def rewrite(path, lines):
    path.write_text("\n".join(lines) + "\n")


def cut_json(data):
    lines = lines_of(data / "corpus.jsonl")
    lines[4] = lines[4][:20]
    rewrite(data / "corpus.jsonl", lines)


def missing_field(data):
    lines = lines_of(data / "corpus.jsonl")
    lines[2] = json.dumps({"_id": "d2", "title": "no text"})
    rewrite(data / "corpus.jsonl", lines)


def duplicate_id(data):
    lines = lines_of(data / "corpus.jsonl")
    lines[9] = lines[3]
    rewrite(data / "corpus.jsonl", lines)


def duplicate_query(data):
    lines = lines_of(data / "queries.jsonl")
    rewrite(data / "queries.jsonl", [*lines, lines[0]])


def empty_query(data):
    lines = lines_of(data / "queries.jsonl")
    lines[1] = json.dumps({"_id": "q1", "text": "  "})
    rewrite(data / "queries.jsonl", lines)


def unknown_document(data):
    path = data / "qrels" / "train.tsv"
    rewrite(path, [*lines_of(path), "q1\tnowhere\t1"])


def unknown_query(data):
    path = data / "qrels" / "train.tsv"
    rewrite(path, [*lines_of(path), "nobody\td1\t1"])


def bad_label(data):
    path = data / "qrels" / "train.tsv"
    rewrite(path, [*lines_of(path)[:2], "q1\td1\tyes"])


def empty_corpus(data):
    (data / "corpus.jsonl").write_text("")


def no_split(data):
    (data / "qrels" / "train.tsv").unlink()


def not_utf8(data):
    path = data / "corpus.jsonl"
    path.write_bytes(path.read_bytes().replace(b"bread", b"br\xffad", 1))


BROKEN = [
    (cut_json, "data/corpus.jsonl:5: not valid JSON"),
    (missing_field, "data/corpus.jsonl:3: no text"),
    (duplicate_id, "data/corpus.jsonl:10: document id 'd3' is also on line 4"),
    (duplicate_query, "data/queries.jsonl:33: query id 'q0' is also on line 1"),
    (empty_query, "data/queries.jsonl:2: query 'q1' is empty"),
    (unknown_document, "data/qrels/train.tsv:74: document 'nowhere' is not in the corpus"),
    (unknown_query, "data/qrels/train.tsv:74: query 'nobody' is not among the queries"),
    (bad_label, "data/qrels/train.tsv:3: the label should be a whole number, found 'yes'"),
    (empty_corpus, "data/corpus.jsonl: the corpus is empty"),
    (no_split, "data/qrels/train.tsv: no such split"),
    (not_utf8, "data/corpus.jsonl:7: not valid JSON"),
]


@pytest.mark.parametrize(("breaks", "words"), BROKEN, ids=[case[0].__name__ for case in BROKEN])
def test_a_broken_dataset(ance, dataset, breaks, words):
    """bm25s needs no JVM, and reads the same dataset through the same door."""
    breaks(dataset)
    found = ance("bm25-negatives", "--data", "data", "--engine", "bm25s", "-o", "out.jsonl", code=3)
    assert f"error: {words}" in found.stderr
    assert sorted(path.name for path in ance.cwd.iterdir()) == ["data"]


@pytest.mark.parametrize("breaks", [cut_json, missing_field, duplicate_id, empty_corpus])
def test_encode_refuses_a_broken_corpus_before_it_loads_a_model(ance, dataset, checkpoint, breaks):
    breaks(dataset)
    found = ance("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb", code=3)
    assert "data/corpus.jsonl" in found.stderr
    assert sorted(path.name for path in ance.cwd.iterdir()) == ["data"]


def test_skip_bad_counts_and_goes_on(ance, dataset):
    cut_json(dataset)
    unknown_document(dataset)
    found = ance(
        "bm25-negatives", "--data", "data", "--engine", "bm25s", "--skip-bad", "-o", "out.jsonl"
    )
    assert "skipped" in found.stderr and "data/corpus.jsonl:5: not valid JSON" in found.stderr
    assert (ance.cwd / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("tokenizer.json", "the checkpoint has no tokenizer"),
        ("2_Dense/model.safetensors", "the weights of the Dense are missing"),
        ("model.safetensors", "holds no weights in safetensors format"),
        ("config.json", "the checkpoint's Transformer module is missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole(ance, dataset, checkpoint, missing, words):
    copy = shutil.copytree(checkpoint, ance.cwd / "ckpt")
    (copy / missing).unlink()
    found = ance("encode", "--ckpt", "ckpt", "--data", "data", "-o", "emb", code=3)
    assert words in found.stderr and "hint:" in found.stderr
    assert not (ance.cwd / "emb").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_checkpoint_that_was_cut_short(ance, dataset, checkpoint, name):
    copy = shutil.copytree(checkpoint, ance.cwd / "ckpt")
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    found = ance("encode", "--ckpt", "ckpt", "--data", "data", "-o", "emb", code=3)
    assert "error: " in found.stderr and "ckpt" in found.stderr
    assert not (ance.cwd / "emb").exists()


@pytest.mark.long
def test_code_in_a_checkpoint_runs_only_if_it_is_trusted(tmp_path, dataset, checkpoint):
    program = Ance(tmp_path)
    copy = shutil.copytree(checkpoint, program.cwd / "ckpt")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("import pathlib; pathlib.Path('ran').write_text('yes')")
    encode = ["encode", "--ckpt", "ckpt", "--data", "data", "-o", "emb"]
    found = program(*encode, code=3, stdin="y\n")
    assert "ckpt: the Transformer does not load" in found.stderr
    assert "if you trust it, add --trust-remote-code" in found.stderr
    assert not (program.cwd / "ran").exists()
    program(*encode, "--trust-remote-code", code=3)  # the code has no model
    assert (program.cwd / "ran").exists()


def test_a_checkpoint_without_a_head(ance, dataset, backbone):
    found = ance("encode", "--ckpt", backbone, "--data", "data", "-o", "emb", code=3)
    assert "has no pooling and head" in found.stderr and "train-segment" in found.stderr
    assert not (ance.cwd / "emb").exists()


def test_a_checkpoint_full_of_nan(ance, dataset, checkpoint):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(checkpoint, ance.cwd / "ckpt")
    weights = load_file(copy / "2_Dense" / "model.safetensors")
    weights["linear.bias"][0] = float("nan")
    save_file(weights, copy / "2_Dense" / "model.safetensors")
    found = ance("encode", "--ckpt", "ckpt", "--data", "data", "-o", "emb", code=3)
    assert "the vector of 'd0' and 63 others are not finite" in found.stderr
    assert not (ance.cwd / "emb").exists()


@pytest.fixture
def encoded(ance, dataset, checkpoint):
    ance("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    return ance.cwd / "emb"


def test_embeddings_that_are_not_these(ance, encoded, checkpoint):
    """Vectors of another tower, of another corpus, without a manifest, damaged, misaligned."""
    mine = ["mine", "--data", "data", "--embeddings", "emb", "--depth", 5, "-o", "ann.jsonl"]
    other = ["--ckpt", checkpoint, "--passage-length", 16]
    found = ance(*mine, *other, code=4)
    assert "were made by another passage encoder than" in found.stderr
    assert "hint: encode again: ance encode --ckpt" in found.stderr

    corpus = ance.cwd / "data" / "corpus.jsonl"
    text = corpus.read_text()
    corpus.write_text(text.replace("bread", "stone"))
    found = ance(*mine, "--ckpt", checkpoint, code=4)
    assert "the vectors are of another corpus" in found.stderr
    corpus.write_text(text)

    ids = encoded / "ids.txt"
    names = ids.read_text()
    ids.write_text(names.replace("d5\n", "", 1))
    found = ance(*mine, "--ckpt", checkpoint, code=3)
    assert "has 63 ids, expected 64 (the manifest)" in found.stderr
    ids.write_text(names)

    vectors = encoded / "embeddings.npy"
    data = bytearray(vectors.read_bytes())
    data[300] ^= 255
    vectors.write_bytes(data)
    found = ance(*mine, "--ckpt", checkpoint, code=3)
    assert "block 0 (rows 0 to 64) is damaged" in found.stderr

    np.save(vectors, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    found = ance(*mine, "--ckpt", checkpoint, code=3)
    assert "not a complete .npy array" in found.stderr

    (encoded / "manifest.json").unlink()
    found = ance(*mine, "--ckpt", checkpoint, code=4)
    assert "has no manifest.json" in found.stderr
    assert not list(ance.cwd.glob("ann*"))


TRIPLES = [
    ({"query_id": "q0", "positive_id": "d0"}, ":1: 'negative_ids' should be a list of strings"),
    ({"query_id": "q0", "positive_id": "d0", "negative_ids": ["zz"]}, ":1: document 'zz' is not"),
    ({"query_id": "q0", "positive_id": "d1", "negative_ids": ["d5"]}, ":1: 'd1' is not a positive"),
    ({"query_id": "q0", "positive_id": "d0", "negative_ids": ["d8"]},
     ":1: 'd8' is a positive of query 'q0' and is among its negatives"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "words"), TRIPLES)
def test_negatives_that_are_not_negatives(ance, dataset, checkpoint, record, words):
    (ance.cwd / "bad.jsonl").write_text(json.dumps(record) + "\n")
    found = ance("train-segment", "bad.jsonl", "--data", "data", "--ckpt", checkpoint,
                 "--steps", 2, "-o", "run", code=3)  # fmt: skip
    assert f"error: bad.jsonl{words}" in found.stderr
    assert not list((ance.cwd / "run" / "state").glob("*"))


def test_run_files(ance, dataset):
    (ance.cwd / "five.trec").write_text("q24 Q0 d1 1 2.0\n")
    (ance.cwd / "nan.trec").write_text("q24 Q0 d1 1 nan t\n")
    (ance.cwd / "other.trec").write_text("zzz Q0 d1 1 2.0 t\n")
    for name, words in (
        ("five.trec", "five.trec:1: expected TREC's 6 columns"),
        ("nan.trec", "nan.trec:1: the score is nan"),
        ("other.trec", "the run and the labels have no query in common"),
        ("none.trec", "none.trec: no such file"),
    ):
        assert words in ance("eval", name, "--qrels", "data/qrels/dev.tsv", code=3).stderr


USAGE = [
    (["mine", "--ckpt", "x"], "--output"),
    (["encode", "--data", "data", "--ckpt", "{ckpt}", "-o", "-"], "cannot be written to stdout"),
    (["bm25-negatives", "--data", "data", "-o", "-", "--json"], "--json and -o - both need stdout"),
    (["bm25-negatives", "--data", "data", "-o", "x", "--mix", "bm25:0.5,ann:0.5"], "--mix"),
    (["bm25-negatives", "--data", "data", "-o", "x", "--depth", "0"], "--depth"),
    (["encode", "--data", "data", "--ckpt", "{ckpt}", "-o", "e", "--gpus", "90"], "no GPU 90"),
    (["mine", "--data", "data", "--ckpt", "{ckpt}", "-o", "x"], "exactly one of --embeddings DIR"),
    (["train-segment", "-o", "r", "--steps", "1"], "it needs --data with --split, and --ckpt"),
    (["eval", "x", "--qrels", "q", "--measures", "nDCG@@"], "--measures: cannot read 'nDCG@@'"),
    (["search", "--ckpt", "{ckpt}", "--embeddings", "e"], "there are no queries"),
    (["loop", "-o", "r"], "it needs --data and --ckpt"),
    (["no-such-command"], "No such command"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=lambda value: str(value)[:40])
def test_usage(ance, dataset, checkpoint, arguments, words):
    filled = [str(checkpoint) if part == "{ckpt}" else part for part in arguments]
    found = ance(*filled, code=2)
    assert words in found.stderr
    assert sorted(path.name for path in ance.cwd.iterdir()) == ["data"]


def test_queries_from_stdin_follow_the_rules_of_files(dataset, tmp_path):
    real = Ance(tmp_path)
    search = ["search", "--engine", "bm25s", "--data", dataset, "--depth", 1, "--queries", "-",
              "--threads", 1]  # fmt: skip
    run = real(*search, stdin='\ufeff{"_id": "a", "text": "river"}\nq2\tviolin\n').stdout
    assert [line.split()[0] for line in run.splitlines()] == ["a", "q2"]
    shown = real(*search, stdin='{"_id": "a", "text": null}\n', code=3).stderr
    assert "stdin:1: no text" in shown


def test_queries_are_encoded_without_a_corpus(checkpoint, dataset, inside):
    queries = dataset / "queries.jsonl"
    inside("encode", "--ckpt", checkpoint, "--queries", queries, "--side", "query", "-o", "q",
           "--gpus", "none")  # fmt: skip
    inside("encode", "--ckpt", checkpoint, "--queries", queries, "-o", "p", code=2)
