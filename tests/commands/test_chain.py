"""The chain of stages as a person types it, through the binary, on the small dataset."""

import json
import shutil
import time

import numpy as np
import pytest

from tests.world import jsonl, tree


def labels(path):
    positives = {}
    for line in path.read_text().splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        if int(grade) >= 1:
            positives.setdefault(query_id, set()).add(doc_id)
    return positives


def check_negatives(records, dataset, count):
    """Every pair of the split is there, and no negative is a positive or a copy of one."""
    positives = labels(dataset / "qrels" / "train.tsv")
    texts = {doc["_id"]: doc["text"] for doc in jsonl(dataset / "corpus.jsonl")}
    pairs = {(record["query_id"], record["positive_id"]) for record in records}
    assert pairs == {(query, doc) for query, docs in positives.items() for doc in docs}
    for record in records:
        relevant = positives[record["query_id"]]
        assert not relevant.intersection(record["negative_ids"])
        assert not {texts[d] for d in relevant} & {texts[d] for d in record["negative_ids"]}
        assert len(set(record["negative_ids"])) == len(record["negative_ids"]) <= count


def test_the_whole_chain(ance, inside, dataset, backbone):
    """Every stage once, then every stage again: up to date, and not a byte touched."""
    data = ["--data", "data"]
    recipe = ["--batch-size", 8, "--lr", "1e-3", "--query-length", 12, "--passage-length", 24]
    chain = [
        ["bm25-negatives", *data, "--split", "train", "--engine", "bm25s", "--depth", 20,
         "--negatives", 5, "-o", "bm25.jsonl"],
        ["train-segment", "bm25.jsonl", *data, "--ckpt", backbone, *recipe, "--steps", 4,
         "-o", "runs/warmup"],
        ["encode", "--ckpt", "runs/warmup/latest", *data, "-o", "emb"],
        ["index", "emb", "-o", "index", "--factory", "Flat"],
        ["mine", "--ckpt", "runs/warmup/latest", *data, "--split", "train", "--index", "index",
         "--depth", 20, "--negatives", 5, "-o", "ann.jsonl", "--overlap-with", "bm25.jsonl"],
        ["train-segment", "ann.jsonl", *data, "--ckpt", "runs/warmup/latest", *recipe,
         "--steps", 4, "-o", "runs/ance"],
        ["encode", "--ckpt", "runs/ance/latest", *data, "-o", "emb2"],
        ["search", "--ckpt", "runs/ance/latest", "--embeddings", "emb2", *data, "--split", "dev",
         "--depth", 30, "-o", "dev.trec"],
    ]  # fmt: skip
    for arguments in chain:
        ance(*arguments)
    made = tree(ance.cwd)
    for arguments in chain:
        found = ance(*arguments)
        assert "up to date" in found.stderr, arguments
    assert tree(ance.cwd) == made

    check_negatives(jsonl(ance.cwd / "bm25.jsonl"), dataset, 5)
    check_negatives(jsonl(ance.cwd / "ann.jsonl"), dataset, 5)
    audit = json.loads((ance.cwd / "ann.audit.json").read_text())
    assert audit["pairs"] == 48 and audit["negatives"] == 240
    assert 0 <= audit["overlap_with_earlier"] <= 1

    found = json.loads(
        ance("eval", "dev.trec", "--qrels", "data/qrels/dev.tsv", "--measures", "RR@10 R@30",
             "--json").stdout
    )  # fmt: skip
    assert found["queries"] == 8
    assert set(found["runs"][0]["measures"]) == {"RR@10", "R@30"}

    # the vectors of the checkpoint before are refused after it was trained on
    found = inside("search", "--ckpt", "runs/ance/latest", "--index", "index", *data, "--split",
                   "dev", "-o", "stale.trec", code=4)  # fmt: skip
    assert "made by another passage encoder" in found.stderr
    # other settings under the same name are refused, and the differing key is named
    found = inside("index", "emb", "-o", "index", "--factory", "HNSW8", code=4)
    assert 'exists with other settings: factory "Flat" -> "HNSW8"' in found.stderr
    inside("index", "emb", "-o", "index", "--factory", "HNSW8", "--force")

    metrics = jsonl(ance.cwd / "runs" / "warmup" / "metrics.jsonl")
    assert metrics[-1]["step"] == 4 and np.isfinite(metrics[-1]["loss"])
    assert {"lr", "grad_norm", "epoch", "tokens_per_s", "segment"} <= set(metrics[-1])


def test_mining_embeddings_and_a_flat_index_is_the_same(inside, dataset, checkpoint):
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    inside("index", "emb", "-o", "index")
    for kind in ("embeddings", "index"):
        inside("mine", "--ckpt", checkpoint, "--data", "data", f"--{kind}",
             "emb" if kind == "embeddings" else "index", "--depth", 15, "--negatives", 4,
             "--sampler", "top", "-o", f"{kind}.jsonl")  # fmt: skip
    exact, indexed = (
        [(r["query_id"], r["positive_id"], r["negative_ids"]) for r in jsonl(inside.cwd / name)]
        for name in ("embeddings.jsonl", "index.jsonl")
    )
    assert exact == indexed
    ranks = [record["negative_ranks"] for record in jsonl(inside.cwd / "embeddings.jsonl")]
    assert all(row == sorted(row) for row in ranks)


def test_sampling_again_needs_no_search(inside, dataset, checkpoint):
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb")
    mine = ["mine", "--ckpt", checkpoint, "--data", "data", "--embeddings", "emb", "--depth", 15,
            "--negatives", 4, "--candidates", "cand"]  # fmt: skip
    inside(*mine, "-o", "a.jsonl")
    found = inside(*mine, "-o", "b.jsonl", "--seed", 7)
    assert "drawing from the candidates in cand" in found.stderr
    assert (inside.cwd / "a.jsonl").read_bytes() != (inside.cwd / "b.jsonl").read_bytes()
    inside(*mine, "-o", "c.jsonl", "--candidates", "cand2")
    assert (inside.cwd / "a.jsonl").read_bytes() == (inside.cwd / "c.jsonl").read_bytes()


def test_maxp(inside, dataset, checkpoint):
    """Segments: adjacent rows, several a document, pooled to documents in search and mining."""
    settings = ["--segmentation", "special", "--passage-length", 8, "--max-segments", 3]
    data = ["--ckpt", checkpoint, "--data", "data", *settings]
    inside("encode", *data, "-o", "emb")
    offsets = np.load(inside.cwd / "emb" / "doc_offsets.npy")
    counts = np.diff(offsets)
    assert counts.min() >= 1 and counts.max() == 3
    assert np.load(inside.cwd / "emb" / "embeddings.npy", mmap_mode="r").shape == (offsets[-1], 32)
    inside("index", "emb", "-o", "index")
    ids = (inside.cwd / "index" / "docid").read_text().split()
    assert ids[:3] == ["d0#0", "d0#1", "d0#2"][: counts[0]] + ids[counts[0] : 3]
    for kind, folder in (("embeddings", "emb"), ("index", "index")):
        inside("search", *data, f"--{kind}", folder, "--split", "dev", "--depth", 12,
             "-o", f"{kind}.trec")  # fmt: skip
    exact, indexed = (
        [line.split()[:4] for line in (inside.cwd / name).read_text().splitlines()]
        for name in ("embeddings.trec", "index.trec")
    )
    assert exact == indexed
    hits = [line[2] for line in exact if line[0] == "q24"]
    assert len(hits) == len(set(hits)) == 12


@pytest.mark.long
def test_pipes(ance, inside, dataset, checkpoint):
    """Negatives through stdout and stdin, queries through stdin, a run through stdout."""
    made = ance(
        "bm25-negatives", "--data", "data", "--engine", "bm25s", "--negatives", 3, "-o", "-"
    )
    records = [json.loads(line) for line in made.stdout.splitlines()]
    check_negatives(records, dataset, 3)
    kept = "".join(line + "\n" for line in made.stdout.splitlines()[:20])
    train = ["train-segment", "-", "--data", "data", "--ckpt", checkpoint, "--steps", 2,
             "--batch-size", 4, "-o", "run"]  # fmt: skip
    ance(*train, stdin=kept)
    assert "up to date" in ance(*train, stdin=kept).stderr
    inside("encode", "--ckpt", "run/latest", "--data", "data", "-o", "emb")
    search = ["search", "--ckpt", "run/latest", "--embeddings", "emb", "--depth", 2]
    found = ance(*search, "--queries", "-", stdin="river word3\n\nold bread\n")
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [(line[0], line[3]) for line in lines] == [
        ("1", "1"),
        ("1", "2"),
        ("3", "1"),
        ("3", "2"),
    ]
    shown = inside(*search, "--queries", "data/queries.jsonl", "-o", "-").stdout
    assert len(shown.splitlines()) == 64


def test_a_run_in_place_of_bm25(inside, dataset):
    lines = [f"q{q} Q0 d{d} {r + 1} {50 - r}.0 x\n" for q in range(24)
             for r, d in enumerate(range(q, q + 20))]  # fmt: skip
    (inside.cwd / "given.trec").write_text("".join(lines))
    inside("bm25-negatives", "--data", "data", "--run", "given.trec", "--negatives", 4, "--sampler",
         "top", "-o", "out.jsonl")  # fmt: skip
    records = jsonl(inside.cwd / "out.jsonl")
    check_negatives(records, dataset, 4)
    first = next(r for r in records if (r["query_id"], r["positive_id"]) == ("q1", "d1"))
    assert first["negative_ids"] == ["d2", "d3", "d4", "d5"]
    assert first["negative_ranks"] == [2, 3, 4, 5] and first["sources"] == ["run"] * 4


def test_mixtures(inside, dataset):
    inside("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20, "--negatives", 6,
         "--mix", "bm25:0.5,random:0.5", "-o", "mixed.jsonl")  # fmt: skip
    records = jsonl(inside.cwd / "mixed.jsonl")
    check_negatives(records, dataset, 6)
    assert all(sorted(r["sources"]) == ["bm25"] * 3 + ["random"] * 3 for r in records)


def test_texts_for_people(inside, dataset):
    found = inside("bm25-negatives", "--data", "data", "--engine", "bm25s", "--negatives", 2,
                 "--with-text", "-o", "-")  # fmt: skip
    record = json.loads(found.stdout.splitlines()[0])
    assert record["query"] == "river word0"
    assert record["positive"].startswith("river 0 river word0")
    assert len(record["negatives"]) == 2


def test_encoding_queries(inside, dataset, checkpoint):
    inside("encode", "--ckpt", checkpoint, "--data", "data", "--side", "query", "--split", "dev",
         "--output-dtype", "float32", "-o", "q")  # fmt: skip
    assert np.load(inside.cwd / "q" / "embeddings.npy").shape == (8, 32)
    assert (inside.cwd / "q" / "ids.txt").read_text().split() == [f"q{n}" for n in range(24, 32)]


def test_dry_run_makes_nothing(inside, dataset, checkpoint):
    for arguments in (
        ["encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb"],
        ["bm25-negatives", "--data", "data", "-o", "x.jsonl"],
        ["loop", "--data", "data", "--ckpt", checkpoint, "-o", "run"],
        ["train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0, "--total-steps", 5,
         "-o", "run"],
    ):  # fmt: skip
        assert "would make" in inside(*arguments, "-n").stderr
    assert sorted(path.name for path in inside.cwd.iterdir()) == ["data"]


def test_repeating_is_quick_and_other_threads_are_the_same_artifact(ance, dataset, checkpoint):
    arguments = ["encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb"]
    ance(*arguments)
    started = time.monotonic()
    assert "up to date" in ance(*arguments, "--threads", 1, "--batch-tokens", 999).stderr
    assert time.monotonic() - started < 10  # it does not import torch; a loose guard, not a timing
    moved = shutil.move(ance.cwd / "data", ance.cwd / "moved")
    assert "up to date" in ance("encode", "--ckpt", checkpoint, "--data", moved, "-o", "emb").stderr


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "corpus.jsonl.zst"])
def test_compressed_input(inside, dataset, name):
    import gzip

    import zstandard

    plain = dataset / "corpus.jsonl"
    pack = gzip.compress if name.endswith("gz") else zstandard.ZstdCompressor().compress
    inside(
        "bm25-negatives", "--data", "data", "--engine", "bm25s", "--negatives", 3, "-o", "a.jsonl"
    )
    (dataset / name).write_bytes(pack(plain.read_bytes()))
    plain.unlink()
    inside(
        "bm25-negatives", "--data", "data", "--engine", "bm25s", "--negatives", 3, "-o", "b.jsonl"
    )
    assert (inside.cwd / "a.jsonl").read_bytes() == (inside.cwd / "b.jsonl").read_bytes()


def test_per_query_and_paired_test(inside, dataset):
    for name, best in (("bad", 3), ("good", 0)):
        (inside.cwd / f"{name}.trec").write_text("".join(
            f"q{q} Q0 d{q + (best if r == 0 else 30 + r)} {r + 1} {9 - r} t\n"
            for q in range(24, 32) for r in range(3)
        ))  # fmt: skip
    printed = inside("eval", "bad.trec", "good.trec", "--qrels", "data/qrels/dev.tsv",
                   "--measures", "RR@10", "--per-query", "pq.tsv", "--json").stdout  # fmt: skip
    found = json.loads(printed)
    second = found["runs"][1]["measures"]["RR@10"]
    assert second["mean"] == 1.0 and second["difference"] == 1.0
    assert second["p_randomisation"] == pytest.approx(2 / 2**8, rel=0.5)
    rows = [line.split("\t") for line in (inside.cwd / "pq.tsv").read_text().splitlines()]
    assert rows[0] == ["run", "query_id", "measure", "value"] and len(rows) == 17
