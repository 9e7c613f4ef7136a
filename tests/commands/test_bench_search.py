"""Latency through the command line: what is timed and reported, not how fast it is."""

import json

import numpy as np
import pytest

from ance_cli.config import ComputeConfig
from ance_cli.evaluation.measures import evaluate, parse_measures
from ance_cli.formats.dataset import read_qrels, read_queries
from ance_cli.formats.embeddings import Embeddings
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.texts import TextEncoder
from ance_cli.progress import Silent


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


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_each_width_has_the_measures_of_a_search_of_cut_vectors(
    inside, dataset, spread_checkpoints, similarity
):
    checkpoint = spread_checkpoints[similarity]
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    command = ["bench-search", "emb", "--ckpt", checkpoint, "--data", "data", "--split", "dev",
               "--depth", 10, "--trials", 2, "--dtype", "fp32", "--gpus", "none",
               "--widths", "3,12", "--measures", "nDCG@5 R@10"]  # fmt: skip
    found = json.loads(inside(*command, "--json").stdout)
    assert [row["width"] for row in found["widths"]] == [32, 12, 3]
    assert found["queries"] == 2  # only the timing is of a few queries

    qrels = read_qrels(dataset / "qrels" / "dev.tsv")
    texts = read_queries(dataset / "queries.jsonl")
    encoder = TextEncoder(Checkpoint(checkpoint), "query", ComputeConfig(dtype="fp32"))
    xq = encoder.queries([texts[query_id] for query_id in qrels], Silent())
    embeddings = Embeddings(inside.cwd / "emb")
    first = {}
    for row in found["widths"]:
        q, x = (v[:, : row["width"]].astype(np.float64) for v in (xq, embeddings.vectors))
        if similarity == "cosine" and row["width"] < 32:
            q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x))
        run = {}
        for query_id, scores in zip(qrels, q @ x.T, strict=True):
            best = np.argsort(-scores, kind="stable")[:10]
            run[query_id] = {embeddings.ids[doc]: float(scores[doc]) for doc in best}
        expected = evaluate(run, qrels, parse_measures("nDCG@5 R@10")).means
        first = first or expected
        assert row["measures"] == pytest.approx(expected, abs=1e-9)
        shares = {name: expected[name] / first[name] for name in expected}
        assert row["shares"] == pytest.approx(shares, abs=1e-9)
    assert len({row["measures"]["nDCG@5"] for row in found["widths"]}) > 1

    shown = inside(*command).stdout
    assert "dimensions" in shown and "nDCG@5 kept" in shown and "100.0%" in shown
    inside("search", "--ckpt", checkpoint, "--embeddings", "emb", "--data", "data", "--split",
           "dev", "--depth", 10, "--dtype", "fp32", "--gpus", "none", "-o", "run.trec")  # fmt: skip
    alone = json.loads(inside("eval", "run.trec", "--qrels", dataset / "qrels" / "dev.tsv",
                              "--measures", "nDCG@5 R@10", "--json").stdout)  # fmt: skip
    means = {name: each["mean"] for name, each in alone["runs"][0]["measures"].items()}
    assert found["widths"][0]["measures"] == pytest.approx(means, abs=1e-9)


def test_what_bench_search_refuses(inside, dataset, checkpoint, two_towers):
    inside("encode", "--ckpt", two_towers, "--passage-length", 9, "--data", "data", "-o", "emb")
    (inside.cwd / "plain").mkdir()
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "own")
    inside("index", "own", "-o", "flat")
    bench = ["--ckpt", checkpoint, "--data", "data", "--split", "dev"]
    for arguments, words, code in (
        (["emb"], "made by another passage encoder", 4),
        (["plain"], "has no manifest.json", 4),
        (["nowhere"], "nowhere: no such embeddings", 3),
        (["emb", "--trials", 0], "--trials must be at least 1", 2),
        (["emb", "--depth", 0], "--depth must be at least 1", 2),
        (["emb", "--widths", "8"], "made by another passage encoder", 4),
        (["flat", "--widths", "8"], "vectors of one folder of embeddings, and 0 are named", 2),
        (["own", "own", "--widths", "8"], "embeddings, and 2 are named", 2),
        (["own", "--widths", "64"], "--widths 64: the vectors have only 32 dimensions", 2),
        (["own", "--widths", "8;4"], "--widths '8;4': expected different numbers", 2),
        (["own", "--measures", "RR@10"], "--measures needs --widths", 2),
        (["own", "--widths", "8", "--measures", "Nope"], "--measures: cannot read 'Nope'", 2),
    ):
        assert words in inside("bench-search", *arguments, *bench, code=code).stderr
