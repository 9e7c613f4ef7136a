"""Latency through the command line: what is timed and reported, not how fast it is."""

import json


def test_indexes_are_timed_beside_the_exact_search(inside, dataset, checkpoint):
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    inside("index", "emb", "-o", "flat")
    inside("index", "emb", "--factory", "IVF8,Flat", "-o", "ivf")
    command = ["bench-search", "flat", "emb", "ivf", "--ckpt", checkpoint, "--data", "data",
               "--split", "dev", "--depth", 20, "--trials", 5,
               "--dtype", "fp32", "--gpus", "none"]  # fmt: skip
    found = json.loads(inside(*command, "--json").stdout)
    assert (found["queries"], found["depth"]) == (5, 20)
    flat, exact, ivf = found["sources"]
    assert [row["searched"] for row in found["sources"]] == ["Flat", "exactly", "IVF8,Flat"]
    assert flat["recall"] == exact["recall"] == 1.0 > ivf["recall"] > 0
    for row in found["sources"]:
        assert 0 < row["total"]["p50"] <= row["total"]["p95"] <= row["total"]["p99"]
        assert row["batched"] > 0 and row["encode"]["p50"] > 0 and row["search"]["p50"] > 0
    shown = inside(*command).stdout
    assert "5 queries, 20 documents each, encoded on cpu, fp32; milliseconds" in shown
    assert "recall@20" in shown and "IVF8,Flat" in shown
    # without embeddings there is nothing to compare with
    command[2:3] = []
    assert "recall" not in json.loads(inside(*command, "--json").stdout)["sources"][0]


def test_what_bench_search_refuses(inside, dataset, checkpoint, two_towers):
    inside("encode", "--ckpt", two_towers, "--passage-length", 9, "--data", "data", "-o", "emb")
    (inside.cwd / "plain").mkdir()
    bench = ["--ckpt", checkpoint, "--data", "data", "--split", "dev"]
    for arguments, words, code in (
        (["emb"], "made by another passage encoder", 4),
        (["plain"], "has no manifest.json", 4),
        (["nowhere"], "nowhere: no such embeddings", 3),
        (["emb", "--trials", 0], "--trials must be at least 1", 2),
        (["emb", "--depth", 0], "--depth must be at least 1", 2),
    ):
        assert words in inside("bench-search", *arguments, *bench, code=code).stderr
