"""`ance export` as the binary: negatives, runs, checkpoints; and what is refused."""

import json

import numpy as np
import pytest

from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.tokens import Tokenizer
from tests.models.test_encoder import TEXTS, our_vectors
from tests.world import jsonl, tree, write_jsonl

PAIR = {"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1", "d2"]}


@pytest.fixture
def negatives(tmp_path, dataset):
    return write_jsonl(tmp_path / "ann.jsonl", [PAIR, {**PAIR, "positive_id": "d8"}])


DATA = ("--data", "data", "--split", "train")


def test_a_file_of_rows_once_and_again(ance, negatives):
    words = ["export", "tevatron", "ann.jsonl", *DATA, "-o", "out.jsonl"]
    dry = json.loads(ance(*words, "--dry-run", "--json").stdout)
    assert dry["form"] == "tevatron" and not (ance.cwd / "out.jsonl").exists()
    found = json.loads(ance(*words, "--json").stdout)
    assert (found["pairs"], found["negatives"], found["kind"]) == (2, 4, "export")
    before = tree(ance.cwd)
    assert "up to date" in ance(*words).stderr
    assert tree(ance.cwd) == before
    assert "negatives null -> 1" in ance(*words, "--negatives", 1, code=4).stderr
    ance(*words, "--negatives", 1, "--force")
    assert len(jsonl(ance.cwd / "out.jsonl")[0]["negative_passages"]) == 1
    assert ance("export", "tevatron", "ann.jsonl", *DATA, "-o", "-").stdout.count("\n") == 2


@pytest.mark.parametrize("form", ["tevatron-v2", "ann-training-data"])
def test_a_folder_of_rows_once_and_again(inside, negatives, form):
    words = ["export", form, "ann.jsonl", *DATA, "-o", "out"]
    inside(*words)
    before = tree(inside.cwd)
    assert "up to date" in inside(*words).stderr
    assert tree(inside.cwd) == before
    assert "cannot be written to stdout" in inside(*words[:-1], "-", code=2).stderr
    (inside.cwd / "other").mkdir()
    (inside.cwd / "other" / "mine.txt").write_text("keep")
    assert "exists and has no manifest" in inside(*words[:-1], "other", code=4).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tevatron", "ann.jsonl", "-o", "x"], "no corpus is named"),
        (["tevatron", "ann.jsonl", "--data", "data", "-o", "x"], "this command needs qrels"),
        (["tevatron", "-", *DATA, "-o", "x"], "ance export cannot read from stdin"),
        (["tevatron", "ann.jsonl", *DATA, "--negatives", "0", "-o", "x"],
         "--negatives must be at least 1"),
        (["dpr-reader", "ann.jsonl", "-o", "x"], "dpr-reader needs texts and answers"),
        (["parquet", "ann.jsonl", "-o", "x"], "'parquet' is not one of"),
        (["tevatron", "ann.jsonl", *DATA], "tevatron is written to a file or folder"),
        (["tevatron", "ann.jsonl", *DATA, "-o", "x", "--url", "y"],
         "--url and --collection do not apply to tevatron"),
        (["qdrant", "emb", "--data", "data"], "exactly one of a file (-o) and a database (--url)"),
    ],
)  # fmt: skip
def test_impossible_exports_are_refused(inside, negatives, words, said):
    assert said in " ".join(inside("export", *words, code=2).stderr.split())
    assert not (inside.cwd / "x").exists()


def test_a_pair_left_out_is_warned_about(inside, dataset):
    write_jsonl(inside.cwd / "ann.jsonl", [PAIR, {**PAIR, "positive_id": "d8", "negative_ids": []}])
    found = inside("export", "flagembedding", "ann.jsonl", *DATA, "-o", "out.jsonl")
    assert "skipped 1 pairs that have too few negatives" in found.stderr


def test_queries_without_answers_are_warned_about(inside, dataset):
    write_jsonl(inside.cwd / "queries.jsonl", [
        {"_id": "q0", "text": "one", "answers": ["river"]}, {"_id": "q1", "text": "two"},
    ])  # fmt: skip
    (inside.cwd / "run.trec").write_text("q0 Q0 d0 1 2 x\nq1 Q0 d1 1 2 x\n")
    found = inside("export", "dpr-reader", "run.trec", "--data", "data", "--queries",
                   "queries.jsonl", "-o", "reader.json")  # fmt: skip
    assert "1 of 2 queries have no answer" in found.stderr
    assert len(json.loads((inside.cwd / "reader.json").read_text())) == 2


# ---------------------------------------------------------------- vector databases


def test_embeddings_in_a_vector_database(ance, inside, dataset, checkpoint):
    pytest.importorskip("lancedb")
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb", "--gpus", "none")
    words = ["export", "lancedb", "emb", "--data", "data"]
    store = [*words, "--url", "store", "--collection", "docs"]
    found = json.loads(ance(*store, "--json").stdout)
    assert (found["output"], found["points"], found["dim"]) == ("lancedb:docs", 64, 32)
    assert "made collection lancedb:docs" in inside(*store).stderr
    inside(*words, "-o", "points.parquet")
    assert "up to date" in inside(*words, "-o", "points.parquet").stderr
    inside("encode", "--ckpt", checkpoint, "--data", "data", "-o", "cut", "--gpus", "none",
           "--passage-length", 10)  # fmt: skip
    store[2] = "cut"
    refused = inside(*store, code=4).stderr
    assert "lancedb:docs: holds vectors that do not belong to these: checkpoint" in " ".join(
        refused.split()
    )
    inside(*store, "--force")
    (inside.cwd / "ance.toml").write_text('[export]\nurl = "http://203.0.113.7"\n')
    assert "url is not taken from an ance.toml" in " ".join(inside(*words, code=2).stderr.split())


# ---------------------------------------------------------------- ONNX


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["checkpoint", pytest.param("two_towers", marks=pytest.mark.long)]
)
def test_onnx_gives_the_vectors_of_the_checkpoint(request, inside, folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = Checkpoint(request.getfixturevalue(folder))
    words = ["export", "onnx", source.path, "-o", "onnx"]
    found = json.loads(inside(*words, "--json").stdout)
    assert found["largest_difference"] < 1e-4 and found["dim"] == 32
    assert "up to date" in inside(*words).stderr
    for side in ("query", "passage"):
        place = inside.cwd / "onnx" if source.shared else inside.cwd / "onnx" / side
        session = onnxruntime.InferenceSession(place / "onnx" / "model.onnx")
        rows = Tokenizer(source)(TEXTS, side)
        token_ids, mask = rows.padded(range(len(TEXTS)), 0)
        inputs = {"input_ids": token_ids, "attention_mask": mask}
        (vectors,) = session.run(["sentence_embedding"], inputs)
        np.testing.assert_allclose(vectors, our_vectors(source.path, side=side), atol=1e-4)
        assert (place / "tokenizer.json").exists()
        assert [each.name for each in session.get_outputs()] == [
            "sentence_embedding", "last_hidden_state",
        ]  # fmt: skip
        modules = json.loads((place / "modules.json").read_text())
        assert [each["type"].rpartition(".")[2] for each in modules] == [
            module.kind for module in source.tower(side).modules
        ]
        assert all((place / each["path"]).is_dir() for each in modules)
        assert not list(place.glob("*.safetensors")), "the graph replaces the backbone's weights"
    assert (inside.cwd / "onnx" / "ance.json").exists()


@pytest.mark.slow
def test_sentence_transformers_loads_the_graph(inside, checkpoint):
    pytest.importorskip("optimum.onnxruntime")
    from sentence_transformers import SentenceTransformer

    inside("export", "onnx", checkpoint, "-o", "onnx")
    kwargs = {"provider": "CPUExecutionProvider"}
    model = SentenceTransformer(
        str(inside.cwd / "onnx"), backend="onnx", device="cpu", model_kwargs=kwargs
    )
    for side, encode in (("query", model.encode_query), ("passage", model.encode_document)):
        np.testing.assert_allclose(encode(TEXTS), our_vectors(checkpoint, side=side), atol=1e-4)


def test_a_graph_that_differs_is_not_published(inside, checkpoint, monkeypatch):
    from ance_cli.models import onnx

    monkeypatch.setattr(onnx, "need_onnx", lambda: None)
    monkeypatch.setattr(onnx, "write_onnx", lambda *_: float("nan"))
    found = inside("export", "onnx", checkpoint, "-o", "onnx", code=5)
    assert "graph differ from torch's by nan" in " ".join(found.stderr.split())
    assert [path.name for path in inside.cwd.iterdir() if "lease" not in path.name] == []


def test_a_plain_encoder_has_no_vectors_to_export(inside, backbone):
    found = inside("export", "onnx", backbone, "-o", "onnx", code=3)
    assert "has no pooling and head" in " ".join(found.stderr.split())


def test_a_missing_package_is_named(inside, checkpoint, monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name == "onnxscript" else there(name))  # fmt: skip
    found = inside("export", "onnx", checkpoint, "-o", "onnx", code=2)
    assert "needs onnxscript, which is not installed" in " ".join(found.stderr.split())
    assert "pip install 'ance-cli[onnx]'" in " ".join(found.stderr.split())
