"""The program on checkpoints with two towers, and on documents cut by `slice`."""

import json
import shutil

import numpy as np

from ance_cli.models.checkpoint import Checkpoint
from tests.models.test_encoder import our_vectors


def vectors(folder):
    return np.load(folder / "embeddings.npy")


def test_each_side_goes_through_its_own_tower(inside, dataset, two_towers):
    data = ["--data", "data", "--split", "dev"]
    model = ["--ckpt", two_towers, "--dtype", "fp32", "--gpus", "none"]
    inside("encode", *model, *data, "--output-dtype", "float32", "-o", "docs")
    inside("encode", *model, *data, "--side", "query", "--output-dtype", "float32", "-o", "queries")
    corpus = [json.loads(line) for line in (dataset / "corpus.jsonl").open()]
    texts = [f"{document['title']} {document['text']}" for document in corpus]
    docs = vectors(inside.cwd / "docs")
    np.testing.assert_allclose(docs, our_vectors(two_towers, texts), atol=1e-5)
    named = {
        record["_id"]: record["text"]
        for record in map(json.loads, (dataset / "queries.jsonl").open())
    }
    query_ids = (inside.cwd / "queries" / "ids.txt").read_text().split()
    queries = vectors(inside.cwd / "queries")
    expected = our_vectors(two_towers, [named[name] for name in query_ids], "query")
    np.testing.assert_allclose(queries, expected, atol=1e-5)

    inside("search", *model, *data, "--embeddings", "docs", "--depth", 5, "-o", "run.trec")
    best = (queries @ docs.T).argsort(axis=1)[:, ::-1]
    found = {}
    for line in (inside.cwd / "run.trec").read_text().splitlines():
        query_id, _, doc_id, rank, _, _ = line.split()
        if rank == "1":
            found[query_id] = doc_id
    assert found == {
        query_id: corpus[best[row, 0]]["_id"] for row, query_id in enumerate(query_ids)
    }


def test_vectors_of_a_shared_tower_stay_valid_when_it_is_split(inside, dataset, checkpoint):
    """As training with frozen passages leaves it: only the query tower is another one."""
    from ance_cli.models.dual import freeze_passages, load_dual, save_dual

    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "docs")
    start = Checkpoint(checkpoint)
    dual = freeze_passages(load_dual(start))
    dual.query.chain[2].linear.weight.data.mul_(2)
    save_dual(dual, start.settings, inside.cwd / "split", frozen_passage_from=start)
    again = inside("encode", "--ckpt", "split", "--data", "data", "-o", "docs")
    assert "up to date" in again.stdout + again.stderr
    data = ["--data", "data", "--split", "dev", "--embeddings", "docs"]
    inside("search", "--ckpt", "split", *data, "-o", "run.trec")
    dual.passage.chain[2].linear.weight.data.mul_(2)
    save_dual(dual, start.settings, inside.cwd / "moved")
    refused = inside("search", "--ckpt", "moved", *data, "-o", "other.trec", code=4)
    assert "made by another passage encoder" in refused.stderr


def test_sliced_documents_have_a_row_for_each_piece(inside, dataset, checkpoint):
    copy = shutil.copytree(checkpoint, inside.cwd / "sliced")
    settings = json.loads((copy / "ance.json").read_text())
    settings |= {"segmentation": "slice", "passage_length": 8, "max_segments": 3}
    (copy / "ance.json").write_text(json.dumps(settings))
    told = inside("encode", "--ckpt", copy, "--data", "data", "-o", "docs")
    assert "longer than" not in told.stderr
    counts = np.diff(np.load(inside.cwd / "docs" / "doc_offsets.npy"))
    assert set(counts.tolist()) == {2, 3}
    inside("search", "--ckpt", copy, "--data", "data", "--split", "dev", "--embeddings", "docs",
         "--depth", 10, "-o", "run.trec")  # fmt: skip
    lines = [line.split() for line in (inside.cwd / "run.trec").read_text().splitlines()]
    assert len({(line[0], line[2]) for line in lines}) == len(lines) == 80
