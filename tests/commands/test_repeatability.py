"""The same call gives the same bytes; what shapes an artifact is named, what does not is not."""

import shutil

import pytest

from tests.world import AnceInside, make_dataset, make_reader

ENCODE = ["encode", "--ckpt", "ckpt", "--data", "data", "--dtype", "fp32"]
MINE = ["mine", "--ckpt", "ckpt", "--data", "data", "--depth", 12, "--negatives", 4,
        "--dtype", "fp32"]  # fmt: skip


@pytest.mark.long
def test_two_fresh_processes_give_the_same_bytes(ance, dataset, checkpoint):
    """Each with a cache, and a seed of Python's own hashes, that the other one does not have."""
    shutil.copytree(checkpoint, ance.cwd / "ckpt")
    for name in ("a", "b"):
        fresh = {
            "ANCE_CACHE_DIR": str(ance.cwd / f"cache-{name}"),
            "PYTHONHASHSEED": str(ord(name)),
        }
        ance(*ENCODE, "-o", f"emb-{name}", **fresh)
        ance(*MINE, "--embeddings", f"emb-{name}", "--mix", "ann:0.7,random:0.3",
             "-o", f"{name}.jsonl", **fresh)  # fmt: skip
    for first, second in (
        ("emb-a/embeddings.npy", "emb-b/embeddings.npy"),
        ("emb-a/ids.txt", "emb-b/ids.txt"),
        ("a.candidates/rows.npy", "b.candidates/rows.npy"),
        ("a.candidates/scores.npy", "b.candidates/scores.npy"),
        ("a.jsonl", "b.jsonl"),
        ("a.audit.json", "b.audit.json"),
    ):
        assert (ance.cwd / first).read_bytes() == (ance.cwd / second).read_bytes(), first


EMBEDDINGS = ["--embeddings", "emb"]
DENSE = ["search", "--ckpt", "ckpt", "--data", "data", "--split", "dev", *EMBEDDINGS]
COMMANDS = {
    # command, what only says how it runs, what shapes the output, the keys that are named
    "tokenize": (["tokenize", "--ckpt", "ckpt", "--data", "data", "-o", "tok"],
                 ["--threads", 1], ["--passage-length", 9], "passage_length 24 -> 9"),
    "encode": ([*ENCODE, "-o", "emb"],
               ["--threads", 1, "--batch-tokens", 999, "--cpu-workers", 2, "--gpus", "none"],
               ["--output-dtype", "float32"], 'output_dtype "float16" -> "float32"'),
    "index": (["index", "emb", "-o", "idx"],
              ["--recall-check", 0], ["--factory", "HNSW8"], 'factory "Flat" -> "HNSW8"'),
    "generate-queries": (["generate-queries", "--data", "data", "--model", "writer", "--engine",
                          "bm25s", "--temperature", 1, "--max-new-tokens", 4, "-o", "generated"],
                         ["--threads", 1, "--batch-size", 3, "--gpus", "none"],
                         ["--seed", 7, "--round-trip-depth", 9],
                         "round_trip_depth 3 -> 9; seed 42 -> 7"),
    "bm25-negatives": (["bm25-negatives", "--data", "data", "--engine", "bm25s", "-o", "n.jsonl"],
                       ["--threads", 1], ["--depth", 30], "depth 100 -> 30"),
    "mine": ([*MINE, *EMBEDDINGS, "-o", "ann.jsonl"],
             ["--threads", 1, "--batch-tokens", 999, "--gpus", "none"],
             ["--sampler", "top"], 'sampler "uniform" -> "top"'),
    "search": ([*DENSE, "-o", "dev.trec"],
               ["--threads", 1, "--batch-tokens", 999, "--gpus", "none"],
               ["--tag", "x"], 'tag "ance" -> "x"'),
    "train-segment": (["train-segment", "n.jsonl", "--data", "data", "--ckpt", "ckpt", "--steps", 2,
                       "--total-steps", 8, "--batch-size", 4, "-o", "run"],
                      ["--threads", 1, "--cpu-workers", 2, "--gpus", "none", "--log-every", 5,
                       "--grad-cache", 2, "--gradient-checkpointing"],
                      ["--lr", "1e-3", "--seed", 7], "lr 2e-05 -> 0.001; seed 42 -> 7"),
    "refresh": (["refresh", "run"], ["--threads", 1, "--gpus", "none"],
                ["--depth", 9], "depth 200 -> 9"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
    """A world in which every command was given once."""
    ance = AnceInside(tmp_path_factory.mktemp("made"))
    make_dataset(ance.cwd / "data")
    shutil.copytree(checkpoint, ance.cwd / "ckpt")
    make_reader(ance.cwd / "writer", "seq2seq")
    for command, *_ in COMMANDS.values():
        ance(*command)
    return ance


@pytest.mark.parametrize("name", COMMANDS)
def test_what_makes_an_artifact_stale(made, name):
    command, runs, shapes, keys = COMMANDS[name]
    again = " ".join(made(*command, *runs).stderr.split())
    assert "up to date" in again, again
    found = made(*command, *shapes, code=4)
    assert keys in " ".join(found.stderr.split()) and "hint: " in found.stderr, found.stderr
    assert "up to date" in made(*command).stderr
