"""Broken input in every stage: exit code, place, what was expected, next step, nothing left over.

Each case changes one thing in a world where every stage has done its work, and gives one command.
"""

import gzip
import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import zstandard

from tests.world import Ance, AnceInside, make_dataset, make_reader, tree

BM25 = ["bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 5, "-o", "out"]
TOKENIZE = ["tokenize", "--ckpt", "ckpt", "--data", "data", "-o", "out"]
ENCODE = ["encode", "--ckpt", "ckpt", "--data", "data", "-o", "out"]
INDEX = ["index", "emb", "-o", "out"]
DENSE = ["--data", "data", "--ckpt", "ckpt", "--embeddings", "emb", "--depth", 5, "-o", "out"]
OVER_INDEX = ["--data", "data", "--ckpt", "ckpt", "--index", "idx", "--depth", 5, "-o", "out"]
MINE = ["mine", *DENSE]
SEARCH = ["search", "--split", "dev", *DENSE]
BM25_SEARCH = ["search", "--data", "data", "--split", "dev", "--engine", "bm25s", "-o", "out"]
TRAIN = ["train-segment", "n.jsonl", "--data", "data", "--ckpt", "ckpt", "--steps", 2,
         "--batch-size", 4, "-o", "out"]  # fmt: skip
GO_ON = ["train-segment", "run/generations/0001/negatives.jsonl", "--steps", 2, "-o", "run"]
REFRESH = ["refresh", "run", "--force"]
LOOP = ["loop", "--data", "data", "--ckpt", "ckpt", "--refresh-every", 2, "--segments", 2,
        "--batch-size", 4, "-o", "out"]  # fmt: skip
MERGE = ["merge", "data", "other", "-o", "out"]
SPLIT = ["split", "other", "--split", "train", "-o", "out"]
EVAL = ["eval", "bm25.trec", "--qrels", "data/qrels/dev.tsv"]
GENERATE = ["generate-queries", "--data", "data", "--model", "writer", "--engine", "bm25s",
            "--max-new-tokens", 4, "-o", "out"]  # fmt: skip
READ = ["read", "bm25.trec", "--data", "data", "--reader", "ckpt", "-o", "out"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
    """A world in which every stage has done its work."""
    folder = tmp_path_factory.mktemp("made")
    make_dataset(folder / "data")
    shutil.copytree(folder / "data", folder / "other")
    shutil.copytree(checkpoint, folder / "ckpt")
    make_reader(folder / "writer", "causal")
    ance = AnceInside(folder)
    ance("encode", "--ckpt", "ckpt", "--data", "data", "-o", "emb")
    ance("tokenize", "--ckpt", "ckpt", "--data", "data", "-o", "tok")
    ance("index", "emb", "--factory", "Flat", "-o", "idx")
    ance(*BM25[:-1], "n.jsonl", "--negatives", 5)
    ance(*BM25_SEARCH[:-1], "bm25.trec")
    ance(*MINE[:-1], "ann.jsonl")
    ance(*TRAIN[:-1], "run", "--total-steps", 8)
    ance("refresh", "run", "--depth", 12, "--negatives", 4)
    return folder


@pytest.fixture
def world(made, tmp_path):
    """A copy of the world, whose run reads the copy's data."""
    shutil.copytree(made, tmp_path / "w", symlinks=True)
    facts = tmp_path / "w" / "run" / "run.json"
    facts.write_text(facts.read_text().replace(str(made.resolve()), str(tmp_path / "w")))
    return AnceInside(tmp_path / "w")


# ---------------------------------------------------------------- how something gets broken


def nothing(folder):
    """What is broken is the command."""


def text(name, content):
    """The file holds this."""

    def breaks(folder):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return breaks


def line(name, number, content):
    """This line of the file is another one."""

    def breaks(folder):
        lines = (folder / name).read_bytes().split(b"\n")
        lines[number - 1] = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(b"\n".join(lines))

    return breaks


def only_train(folder):
    """A dataset with one split, and a broken line in its corpus."""
    (folder / "other" / "qrels" / "dev.tsv").unlink()
    line("other/corpus.jsonl", 3, "{")(folder)


def cut(name, by=None):
    """The file lost its end: this many bytes, or its half."""

    def breaks(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: -by if by else len(data) // 2])

    return breaks


def flipped(name, at):
    """One byte of the file is another one."""

    def breaks(folder):
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 255
        (folder / name).write_bytes(data)

    return breaks


def gone(name):
    return lambda folder: (folder / name).unlink()


def moved(name, other):
    return lambda folder: (folder / name).rename(folder / other)


def a_folder(name):
    """Replace the file with a folder."""

    def breaks(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return breaks


def packed(name, ending, compress):
    """The file is compressed, and its end is missing."""

    def breaks(folder):
        data = compress((folder / name).read_bytes())
        (folder / f"{name}{ending}").write_bytes(data[: len(data) // 2])
        (folder / name).unlink()

    return breaks


def edited(name, change):
    """A JSON file after an edit by hand."""

    def breaks(folder):
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return breaks


def array(name, change):
    """A `.npy` file after an edit."""

    def breaks(folder):
        found = np.load(folder / name)
        np.save(folder / name, change(found))

    return breaks


def nan_in(found):
    found[3, 0] = np.nan
    return found


def negatives(*records):
    return text("n.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def pair(**changes):
    return {"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1"]} | changes


QRELS, CORPUS, QUERIES = "data/qrels/train.tsv", "data/corpus.jsonl", "data/queries.jsonl"
DEEP = b'{"_id":"d2","text":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LONG = b'{"_id":"d2","text":"' + b"a" * 100_000_000

CASES = {
    # the dataset
    "qrels two columns": (line(QRELS, 3, "q0\td8"), BM25, 3, f"{QRELS}:3: expected 3 columns"),
    "qrels five columns": (line(QRELS, 3, "q0\td8\t1\t1\t1"), BM25, 3, f"{QRELS}:3: expected 3"),
    "qrels not UTF-8": (line(QRELS, 3, b"q0\td\xff\t1"), BM25, 3, f"{QRELS}:3: not valid UTF-8"),
    "qrels with two labels": (line(QRELS, 3, "q0\td0\t3"), BM25, 3, "'d0' has the label 3"),
    "qrels a folder": (a_folder(QRELS), BM25, 3, f"{QRELS}: is a folder, expected a file"),
    "qrels empty": (text(QRELS, "query-id\tcorpus-id\tscore\n"), BM25, 3, "has no label"),
    "qrels without a positive": (text(QRELS, "q0\td0\t0\n"), BM25, 3, "there is no positive"),
    "split missing": (nothing, [*BM25, "--split", "no"], 3, "data/qrels/no.tsv: no such split"),
    "corpus UTF-16": (text(CORPUS, "{}".encode("utf-16")), TOKENIZE, 3, f"{CORPUS}:1: not valid"),
    "corpus gz cut": (packed(CORPUS, ".gz", gzip.compress), BM25, 3, "cut short or damaged"),
    "corpus zst cut": (packed(CORPUS, ".zst", zstandard.compress), ENCODE, 3, "cut short or"),
    "corpus not gz": (moved(CORPUS, f"{CORPUS}.gz"), BM25, 3, f"{CORPUS}.gz:1: the compressed"),
    "corpus a folder": (a_folder(CORPUS), ENCODE, 3, f"{CORPUS}: is a folder"),
    "nested deep": (line(CORPUS, 3, DEEP), TOKENIZE, 3, f"{CORPUS}:3: not valid JSON"),
    "100 MB without newline": (line(CORPUS, 3, LONG), BM25, 3, f"{CORPUS}:3: the line is longer"),
    "id with tab": (line(CORPUS, 3, r'{"_id":"d\t2","text":""}'), BM25, 3, f"{CORPUS}:3: 'd\\t2'"),
    "id with newline": (line(CORPUS, 3, r'{"_id":"d\n","text":""}'), BM25, 3, "cannot be an id"),
    "id with NUL": (line(CORPUS, 3, r'{"_id":"d\u0000","text":""}'), BM25, 3, "control character"),
    "id a fraction": (line(CORPUS, 3, '{"_id":1.5,"text":""}'), BM25, 3, "should be a string"),
    "text a number": (line(CORPUS, 3, '{"_id":"d2","text":5}'), TOKENIZE, 3, f"{CORPUS}:3: 'text'"),
    "record a list": (line(CORPUS, 3, "[1]"), MERGE, 3, f"{CORPUS}:3: expected one JSON object"),
    "query empty": (line(QUERIES, 2, '{"_id":"q1","text":""}'), BM25_SEARCH, 3, f"{QUERIES}:2: "),
    "query broken": (line(QUERIES, 2, "{"), [*ENCODE, "--side", "query"], 3, f"{QUERIES}:2: not"),
    "shares broken": (text("data/datasets.json", "[{"), BM25, 3, "data/datasets.json: not valid"),
    "data a file": (text("a.txt", "words"), [*TOKENIZE, "--data", "a.txt"], 3, "not recognised"),
    "loop over broken data": (line(CORPUS, 3, "{"), LOOP, 3, "ended with exit code 3"),
    "merge of broken data": (line("other/corpus.jsonl", 3, "{"), MERGE, 3, "other/corpus.jsonl:3:"),
    "split of broken data": (only_train, SPLIT, 3, "other/corpus.jsonl:3:"),
    "split into a split": (nothing, SPLIT, 2, "other: has the split 'dev' already"),
    "split of a file": (nothing, ["split", CORPUS, "-o", "out"], 2, "has 0 splits"),
    "merge of a file": (nothing, [*MERGE, CORPUS], 3, f"{CORPUS}: no such dataset folder"),
    # settings and places
    "no such GPUs": (nothing, [*ENCODE, "--gpus", "0-99"], 2, "--gpus 0-99: there is no GPU"),
    "GPUs backwards": (nothing, [*TRAIN, "--gpus", "3-0"], 2, "3-0 counts backwards"),
    "factory unknown": (nothing, [*INDEX, "--factory", "No"], 2, "is not a faiss factory string"),
    "factory too large": (nothing, [*INDEX, "--factory", "IVF256,Flat"], 3, "64 rows are too few"),
    "output below a file": (nothing, [*ENCODE, "-o", f"{CORPUS}/x"], 2, "cannot be read or"),
    "run below a file": (nothing, [*TRAIN, "-o", f"{CORPUS}/x"], 2, "(Not a directory)"),
    "run in place of a file": (nothing, [*LOOP, "-o", CORPUS], 2, "(Not a directory)"),
    "cache a file": (nothing, [*ENCODE, "--cache-dir", CORPUS], 2, "Not a directory"),
    "name too long": (nothing, [*BM25, "-o", "o" * 300], 2, "the name has 300 bytes"),
    "partial a folder": (a_folder(".out.partial"), BM25, 2, ".out.partial: cannot be read"),
    "output the corpus": (nothing, [*BM25, "-o", CORPUS, "-f"], 2, f"replace {CORPUS}, which"),
    "output the labels": (nothing, [*BM25, "-o", QRELS, "-f"], 2, f"replace {QRELS}, which"),
    "output the dataset": (nothing, [*ENCODE, "-o", "data", "-f"], 2, "which this command reads"),
    "output the checkpoint": (nothing, [*ENCODE, "-o", "ckpt", "-f"], 2, "this command reads"),
    "output the vectors": (nothing, [*INDEX, "-o", "emb", "-f"], 2, "replace emb, which this"),
    "output the queries": (nothing, [*MINE, "-o", QUERIES, "-f"], 2, f"replace {QUERIES}, which"),
    "output the qrels": (nothing, [*SEARCH, "-o", "data/qrels/dev.tsv", "-f"], 2, "would replace"),
    "table over a run": (nothing, [*EVAL, "--per-query", "bm25.trec"], 2, "would replace it"),
    # checkpoints
    "pickled weights": (moved("ckpt/model.safetensors", "ckpt/pytorch_model.bin"), ENCODE, 3,
                        "no weights in safetensors format"),
    "pickle as safetensors": (text("ckpt/model.safetensors", pickle.dumps({})), ENCODE, 3,
                              "the Transformer does not load"),
    "weights cut": (cut("ckpt/model.safetensors", 100), ENCODE, 3, "the Transformer does not load"),
    "weights with a huge header": (text("ckpt/model.safetensors", struct.pack("<Q", 2**60)),
                                   SEARCH, 4, "another passage encoder"),
    "config not JSON": (text("ckpt/config.json", "a: b"), ENCODE, 3, "ckpt/config.json: not valid"),
    "config a list": (text("ckpt/config.json", "[]"), TOKENIZE, 3, "config.json: expected a JSON"),
    "config of the head": (text("ckpt/2_Dense/config.json", '{"out_features":"b"}'), ENCODE, 3,
                           "'out_features' should be a whole number of at least 1, found 'b'"),
    "pooling a list": (text("ckpt/1_Pooling/config.json", "[]"), ENCODE, 3, "expected a JSON obj"),
    "pins of another type": (text("ckpt/ance.json", '{"query_length":"x"}'), TRAIN, 3,
                             "ckpt/ance.json: 'query_length': expected int, found str"),
    "pins too small": (text("ckpt/ance.json", '{"passage_length":-5}'), ENCODE, 3, "at least 3"),
    "tokenizer missing": (gone("ckpt/tokenizer.json"), MINE, 3, "has no tokenizer"),
    "tokenizer hollow": (text("ckpt/tokenizer.json", "{}"), TOKENIZE, 3, "does not load"),
    # artifacts
    "manifest edited": (edited("emb/manifest.json", lambda m: m["shaped_by"].update(dtype="x")),
                        MINE, 4, "emb/manifest.json: was edited after ance wrote it"),
    "manifest without inputs": (edited("emb/manifest.json", lambda m: m.pop("inputs")), INDEX, 4,
                                "was edited after"),
    "manifest without content": (edited("emb/manifest.json", lambda m: m.pop("content")), SEARCH,
                                 3, "emb/manifest.json: content: expected a JSON object, found"),
    "manifest without blocks": (edited("emb/manifest.json",
                                       lambda m: m["content"].update(block_xxh3=[])), MINE, 3,
                                "0 blocks of 16384 do not hold 64 documents"),
    "ids short": (cut("emb/ids.txt", 4), MINE, 3, "emb/ids.txt: has 63 ids, expected 64"),
    "ids exchanged": (line("emb/ids.txt", 6, "d6"), SEARCH, 3, "emb/ids.txt: is damaged"),
    "ids not UTF-8": (line("emb/ids.txt", 6, b"\xff"), INDEX, 3, "emb/ids.txt: not valid UTF-8"),
    "vectors NaN": (array("emb/embeddings.npy", nan_in), INDEX, 3, "block 0 (rows 0 to 64) is"),
    "vectors cut": (cut("emb/embeddings.npy", 10), MINE, 3, "not a complete .npy array"),
    "vectors pickled": (lambda folder: np.save(folder / "emb/embeddings.npy",
                                               np.array([{}], dtype=object), allow_pickle=True),
                        SEARCH, 3, "emb/embeddings.npy: not a complete .npy array"),
    "vectors a folder": (a_folder("emb/embeddings.npy"), INDEX, 3, "not a complete .npy array"),
    "offsets not in order": (array("emb/doc_offsets.npy", lambda a: np.where(a == 3, 99, a)), MINE,
                             3, "emb/doc_offsets.npy: does not cover the 64 rows"),
    "index cut": (cut("idx/index", 10), ["mine", *OVER_INDEX], 3, "idx/index: is damaged"),
    "index flipped": (flipped("idx/index", -20), ["mine", *OVER_INDEX], 3, "idx/index: is damaged"),
    "index without stats": (edited("idx/manifest.json", lambda m: m.update(stats={})),
                            ["mine", *OVER_INDEX], 3, "stats: has no max_segments"),
    "index for vectors": (nothing, [*MINE, "--embeddings", "idx"], 4, "is of kind 'index'"),
    "vectors for an index": (nothing, ["mine", *OVER_INDEX, "--index", "emb"], 4, "is of kind"),
    "tokens damaged": (flipped("tok/tokens.npy", -20), [*ENCODE, "--tokens", "tok"], 3,
                       "tok: block 0 (documents 0 to 64) is damaged"),
    "candidates turned round": (array("ann.candidates/rows.npy", lambda a: a[:, ::-1].copy()),
                                [*MINE[:-1], "new", "--candidates", "ann.candidates"], 3,
                                "ann.candidates/rows.npy: is damaged: its hash differs"),
    "earlier candidates turned round": (array("ann.candidates/rows.npy",
                                              lambda a: a[:, ::-1].copy()),
                                        [*MINE, "--mix", "ann:0.5,previous:0.5", "--previous",
                                         "ann.candidates"], 3, "rows.npy: is damaged"),
    "candidates' positives": (flipped("ann.candidates/positive_scores.jsonl", -6),
                              [*MINE[:-1], "new", "--candidates", "ann.candidates"], 3,
                              "positive_scores.jsonl: is damaged"),
    "index ids exchanged": (line("idx/docid", 6, "d6"), ["mine", *OVER_INDEX], 3,
                            "idx/docid: is damaged"),
    "tokens' offsets": (flipped("tok/doc_offsets.npy", -8), [*ENCODE, "--tokens", "tok"], 3,
                        "tok/doc_offsets.npy: is damaged"),
    "a vector that is reranked": (array("emb/embeddings.npy", lambda a: -a),
                                  ["rerank", "bm25.trec", *DENSE[:6], "-o", "out"], 3,
                                  "emb/embeddings.npy: block 0 (rows 0 to 64) is damaged"),
    "candidates beyond the corpus": (array("ann.candidates/rows.npy", lambda a: a + 1000),
                                     [*MINE, "--mix", "ann:0.5,previous:0.5", "--previous",
                                      "ann.candidates"], 3, "outside the corpus of 64 documents"),
    "earlier negatives": (negatives(pair(negative_ids=[[1]])), [*MINE, "--overlap-with", "n.jsonl"],
                          3, "n.jsonl:1: 'negative_ids' should be a list of strings"),
    # runs
    "run edited, measured": (line("bm25.trec", 1, "q24 Q0 d5 1 99.000000 ance"), EVAL, 3,
                             "bm25.trec: differs from its manifest"),
    "run edited, fused": (line("bm25.trec", 1, "q24 Q0 d5 1 99.000000 ance"),
                          ["fuse", "bm25.trec", "bm25.trec", "-o", "out"], 3,
                          "remove bm25.trec.manifest.json: then it is read as a file of your own"),
    "run edited, reranked": (line("bm25.trec", 1, "q24 Q0 d5 1 99.000000 ance"),
                             ["rerank", "bm25.trec", *DENSE[:4], "-o", "out"], 3,
                             "bm25.trec: differs from its manifest"),
    "run's manifest cut": (cut("bm25.trec.manifest.json"), EVAL, 3,
                           "bm25.trec.manifest.json: not valid JSON"),
    "run's manifest edited": (edited("bm25.trec.manifest.json",
                                     lambda m: m["shaped_by"].update(depth=7)), EVAL, 4,
                              "bm25.trec.manifest.json: was edited after ance wrote it"),
    "run edited, up to date": (line("bm25.trec", 1, "q24 Q0 d5 1 9.000000 ance"),
                               [*BM25_SEARCH[:-1], "bm25.trec"], 4, "was changed after ance wrote"),
    "run with five columns": (text("bm25.trec", "q24 Q0 d1 1 2.0\n"), EVAL, 3, "bm25.trec:1: exp"),
    "run with NaN": (text("bm25.trec", "q24 Q0 d1 1 nan t\n"), EVAL, 3, "bm25.trec:1: the score"),
    "run with a double": (text("bm25.trec", "q Q0 d 1 1 t\nq Q0 d 2 1 t\n"), EVAL, 3,
                          "bm25.trec:2: document 'd' occurs twice"),
    "run binary": (text("bm25.trec", b"\xff\x00\xfe\n"), EVAL, 3, "bm25.trec:1: not valid UTF-8"),
    "run empty": (text("bm25.trec", ""), EVAL, 3, "bm25.trec: the file has no hits"),
    "run a folder": (a_folder("bm25.trec"), EVAL, 3, "bm25.trec: is a folder"),
    "run of another corpus": (text("r.trec", "q0 Q0 d1 1 1 t\nq0 Q0 zz 2 1 t\n"),
                              [*BM25, "--run", "r.trec"], 3, "r.trec:2: document 'zz' is not in"),
    "run of other queries": (text("r.trec", "zz Q0 d1 1 1 t\n"), [*BM25, "--run", "r.trec"], 3,
                             "r.trec: has none of the 24 queries of the split"),
    "run read by no reader": (nothing, READ, 3, "BertModel; expected a reader"),
    "run of other queries, read": (text("r.trec", "zz Q0 d1 1 1 t\n"),
                                   ["read", "r.trec", *READ[2:]], 3,
                                   "r.trec: query 'zz' is not among the queries"),
    # a model that writes queries
    "corpus cut, read by a writer": (cut(CORPUS, 9), GENERATE, 3, "corpus.jsonl:64: not valid"),
    "passages without text": (text(CORPUS, '{"_id":"d0","text":" "}\n'), GENERATE, 3,
                              "data/corpus.jsonl: no passage has a text"),
    "no shares, for a writer": (text("data/datasets.json", "[]"), GENERATE, 3, "lists no dataset"),
    "encoder for a writer": (nothing, [*GENERATE, "--model", "ckpt"], 3,
                             "BertModel; expected a language model"),
    "writer not there": (nothing, [*GENERATE, "--model", "nosuch"], 3, "no such checkpoint folder"),
    "writer's weights cut": (cut("writer/model.safetensors", 100), GENERATE, 3,
                             "the language model does not load"),
    "writer's config not JSON": (text("writer/config.json", "a"), GENERATE, 3, "config.json: not"),
    "writer without tokenizer": (gone("writer/tokenizer.json"), GENERATE, 3, "has no tokenizer"),
    # negatives
    "unknown query": (negatives(pair(query_id="zz")), TRAIN, 3, "n.jsonl:1: query 'zz' is not"),
    "negatives edited": (negatives(pair(), pair(positive_id="d8")), TRAIN, 3,
                         "n.jsonl: differs from its manifest"),
    "negatives edited, exported": (negatives(pair()), ["export", "tevatron-v2", "n.jsonl", "--data",
                                                       "data", "--split", "train", "-o", "out"], 3,
                                   "n.jsonl: differs from its manifest"),
    "negatives edited, compared": (negatives(pair()), [*MINE, "--overlap-with", "n.jsonl"], 3,
                                   "n.jsonl: differs from its manifest"),
    "no positive": (negatives({"query_id": "q0", "negative_ids": []}), TRAIN, 3, "n.jsonl:1: 'que"),
    "numbers for ids": (negatives(pair(query_id=0.5)), TRAIN, 3, "should be strings"),
    "numbers for negatives": (negatives(pair(negative_ids=[0.5])), TRAIN, 3, "a list of strings"),
    "a pair twice": (negatives(pair(), pair()), TRAIN, 3, "pair is also on line 1"),
    "negatives cut": (text("n.jsonl", '{"query_id":"q0","posit'), TRAIN, 3, "n.jsonl:1: not valid"),
    "negatives empty": (text("n.jsonl", ""), TRAIN, 3, "n.jsonl: the file has no negatives"),
    "negatives a folder": (a_folder("n.jsonl"), TRAIN, 3, "n.jsonl: is a folder"),
    # a run folder
    "run.json cut": (cut("run/run.json"), GO_ON, 3, "run/run.json: not valid JSON"),
    "run.json hollow": (text("run/run.json", "{}"), REFRESH, 3, "run/run.json: has no identity"),
    "refresh.json cut": (cut("run/refresh.json"), REFRESH, 3, "run/refresh.json: not valid JSON"),
    "refresh.json strange": (text("run/refresh.json", '{"what":1}'), ["refresh", "run"], 3,
                             "run/refresh.json: 'what' is not a setting of a refresh"),
    "pointer cut": (cut("run/negatives.json"), REFRESH, 3, "run/negatives.json: not valid JSON"),
    "segments garbled": (line("run/segments.jsonl", 1, "x"), GO_ON, 3, "run/segments.jsonl:1: not"),
    "log garbled": (line("run/metrics.jsonl", 1, "x"), GO_ON, 3, "run/metrics.jsonl:1: not valid"),
    "generation cut": (cut("run/generations/0001/negatives.jsonl"), GO_ON, 3,
                       "differs from its manifest"),
    "state pickled": (text("run/state/step-00000002/weights.safetensors", pickle.dumps({})), GO_ON,
                      3, "run/state/step-00000002: this resume state does not load"),
    "state cut": (cut("run/state/step-00000002/optimizer.safetensors"), GO_ON, 3, "does not load"),
    "checkpoint cut": (cut("run/checkpoints/step-00000002/model.safetensors"), REFRESH, 3,
                       "run/checkpoints/step-00000002/model.safetensors: is damaged: its hash"),
    "checkpoint with a byte changed": (flipped("run/checkpoints/step-00000002/model.safetensors",
                                               -20), REFRESH, 3, "model.safetensors: is damaged"),
    "checkpoint without a file": (gone("run/checkpoints/step-00000002/tokenizer_config.json"),
                                         REFRESH, 3, "tokenizer_config.json: no such file; the"),
    "newest checkpoint's settings cut": (cut("run/checkpoints/step-00000002/ance.json"), REFRESH, 3,
                                         "step-00000002/ance.json: not valid JSON"),
    "newest checkpoint's settings gone": (gone("run/checkpoints/step-00000002/ance.json"), GO_ON, 3,
                                          "step-00000002/ance.json: no such file; the checkpoint"),
    "newest checkpoint's step edited": (edited("run/checkpoints/step-00000002/ance.json",
                                               lambda m: m.update(training_step=0)), REFRESH, 3,
                                        "step-00000002/ance.json: was changed after ance wrote"),
    "checkpoint's prefix edited": (edited("run/checkpoints/step-00000002/ance.json",
                                          lambda m: m.update(query_prefix="q: ")),
                                   [*ENCODE[:1], "--ckpt", "run/latest", *ENCODE[3:]], 3,
                                   "run/latest/ance.json: was changed after ance wrote"),
    "state with a byte changed": (flipped("run/state/step-00000002/weights.safetensors", -20),
                                  GO_ON, 3, "weights.safetensors: is damaged: its hash differs"),
    "moments with a byte changed": (flipped("run/state/step-00000002/optimizer.safetensors", -20),
                                    GO_ON, 3, "optimizer.safetensors: is damaged"),
    "position in the data edited": (edited("run/state/step-00000002/state.json",
                                           lambda m: m.update(position=9)), GO_ON, 3,
                                    "state.json: was changed after ance wrote it"),
    "newest state's progress cut": (cut("run/state/step-00000002/state.json"), GO_ON, 3,
                                    "step-00000002/state.json: not valid JSON"),
    "recipe edited": (edited("run/run.json", lambda m: m["identity"].update(lr=0.05)), GO_ON, 3,
                      "run/run.json: 'identity' was changed after ance wrote it"),
    "refresh.json edited": (edited("run/refresh.json", lambda m: m.update(depth=13)), REFRESH, 3,
                            "run/refresh.json: was changed after ance wrote it"),
    "data of a run gone": (moved("data", "elsewhere"), REFRESH, 3, "corpus.jsonl: no such file"),
    "status of nothing": (nothing, ["status", "nosuch"], 3, "nosuch: no such folder"),
    "status of a dataset": (nothing, ["status", "data"], 3, "data: is not a run folder"),
    "refresh of a dataset": (nothing, ["refresh", "data"], 3, "data is not a run folder"),
    "refresh of a file": (nothing, ["refresh", CORPUS], 2, "Not a directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_broken_input(world, case):
    check(world, case)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_broken_input_through_the_program(world, case):
    """The same, in a process of its own: nothing that an earlier call imported or set helps."""
    check(Ance(world.cwd), case)


def check(world, case):
    breaks, command, code, words = CASES[case]
    breaks(world.cwd)
    inputs, names = tree(world.cwd), set(os.listdir(world.cwd))
    found = world(*command, code=code)
    shown = " ".join(found.stderr.split())
    assert words in shown, found.stderr
    assert "error: " in shown and "hint: " in shown, found.stderr
    assert "Traceback" not in shown
    left = tree(world.cwd)
    ledgers = {"run/events.jsonl", "run/segments.jsonl"}  # a run notes what it began and lost
    assert not [name for name in inputs.keys() - ledgers if left.get(name) != inputs[name]]
    kept = {"out.candidates"}  # a search that went well is not lost for what came after it
    assert not set(os.listdir(world.cwd)) - names - kept
