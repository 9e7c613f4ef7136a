"""A corpus that changes: `encode --append` and `index --append`, and what searches find then."""

import json
import time

import numpy as np
import pytest

from ance_cli.formats.trec import read_run
from tests.world import jsonl, tree, write_jsonl

FACTORY = ["--factory", "IVF4,Flat", "--probes", 4]


def edited(data):
    """d5 and d13 go, d6 gets another text, and a document is new that only q5 asks for."""
    docs = [doc for doc in jsonl(data / "corpus.jsonl") if doc["_id"] not in ("d5", "d13")]
    next(doc for doc in docs if doc["_id"] == "d6")["text"] = "comet word6 of the old river"
    docs.insert(20, {"_id": "new", "title": "", "text": "comet word5"})
    write_jsonl(data / "corpus.jsonl", docs)
    for path in (data / "qrels").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if line.split()[1] not in ("d5", "d13")))


@pytest.mark.parametrize("program", ["inside", pytest.param("ance", marks=pytest.mark.long)])
def test_a_changed_corpus_from_encode_to_search(request, program, dataset, spread_checkpoints):
    ance = request.getfixturevalue(program)
    model = ["--ckpt", spread_checkpoints["dot"], "--data", "data", "--dtype", "fp32"]
    search = ["search", *model, "--split", "train", "--depth", 100]
    folders = ("--embeddings", "emb"), ("--index", "idx")
    encode = ["encode", *model, "-o", "emb", "--append", "--json"]
    index = ["index", "emb", "-o", "idx", *FACTORY, "--append"]
    assert "is new, so every document is encoded" in ance(*encode).stderr
    ance(*index)
    for folder in folders:
        ance(*search, *folder, "-o", f"before{folder[0]}.trec")

    edited(ance.cwd / "data")
    for folder in folders:
        found = ance(*search, *folder, "-o", "stale.trec", code=4)
        assert "the vectors are of another corpus than the dataset's" in " ".join(
            found.stderr.split()
        )
    found = ance("encode", *model, "-o", "emb", code=4)
    assert "bring it up to date with --append" in " ".join(found.stderr.split())
    found = ance(*encode)
    counts = {name: json.loads(found.stdout)[name] for name in ("added", "changed", "removed")}
    assert counts == {"added": 1, "changed": 1, "removed": 2}
    assert "documents: 1 added, 1 changed, 2 removed, 61 kept" in " ".join(found.stderr.split())
    found = ance(*search, "--index", "idx", "-o", "stale.trec", code=4)
    found = ance("index", "emb", "-o", "idx", *FACTORY, code=4)
    assert "bring it up to date with --append" in " ".join(found.stderr.split())
    ance(*index)
    ance("encode", *model, "-o", "full")
    ance(*search, "--embeddings", "full", "-o", "full.trec")
    full = read_run(ance.cwd / "full.trec")
    for folder in folders:
        ance(*search, *folder, "-o", f"after{folder[0]}.trec")
        before = read_run(ance.cwd / f"before{folder[0]}.trec")
        after = read_run(ance.cwd / f"after{folder[0]}.trec")
        for query, hits in after.items():
            assert len(hits) == 63 and "new" in hits and not {"d5", "d13"} & {*hits}
            assert "new" not in before[query] and {"d5", "d13"} <= {*before[query]}
            assert hits == pytest.approx(full[query], abs=1e-3)
    assert "up to date" in ance(*encode[:-1]).stderr
    mine = ["mine", *model, "--embeddings", "emb", "--depth", 20, "--negatives", 4]
    ance(*mine, "-o", "n.jsonl")
    listed = {doc for record in jsonl(ance.cwd / "n.jsonl") for doc in record["negative_ids"]}
    assert listed and not listed & {"d5", "d13"}


def killed(ance, arguments, at):
    """SIGKILL of the program `at` seconds after its partial folder is there; whether it was."""
    process = ance.start(*arguments)
    partial = ance.cwd / ".emb.partial"
    while process.poll() is None and not (partial / "plan.json").exists():
        time.sleep(0.002)
    time.sleep(at)
    process.kill()
    process.wait()
    return process.returncode != 0


@pytest.mark.long
def test_an_append_killed_is_an_append_uninterrupted(ance, dataset, checkpoint):
    """At several instants, then repeated: the old folder stays whole until the new one is."""
    encode = ["encode", "--ckpt", checkpoint, "--data", "data", "--dtype", "fp32"]
    for name in ("emb", "whole"):
        ance(*encode, "-o", name)
    edited(dataset)
    old = tree(ance.cwd / "emb")
    ance(*encode, "-o", "whole", "--append")
    append = [*encode, "-o", "emb", "--append"]
    cut = 0
    for at in (0.0, 0.05, 0.2, 0.6):
        cut += killed(ance, append, at)
        now = tree(ance.cwd / "emb")
        assert now == old or b'"added": 1' in now["manifest.json"]
    assert cut >= 2
    ance(*append)
    found, whole = tree(ance.cwd / "emb"), tree(ance.cwd / "whole")
    assert not list(ance.cwd.glob(".emb*"))
    del found["manifest.json"], whole["manifest.json"]
    assert found == whole


def test_a_corpus_in_another_order(inside, dataset, checkpoint):
    """The ids are in the order of the corpus as it is now, also if only the order has changed."""
    encode = ["encode", "--ckpt", checkpoint, "--data", "data", "--json"]
    inside(*encode, "-o", "emb")
    old = np.load(inside.cwd / "emb" / "embeddings.npy")
    docs = jsonl(dataset / "corpus.jsonl")[::-1]
    write_jsonl(dataset / "corpus.jsonl", docs)
    found = json.loads(inside(*encode, "-o", "emb", "--append").stdout)
    assert (found["kept"], found["tokens"]) == (64, 0)
    assert (inside.cwd / "emb" / "ids.txt").read_text().split() == [doc["_id"] for doc in docs]
    np.testing.assert_array_equal(np.load(inside.cwd / "emb" / "embeddings.npy"), old[::-1])
