"""`ance loop` from decoders and encoders that people bring today: adapters, prompts, templates."""

import json
import signal
import time

import numpy as np
import pytest
import torch

from ance_cli.config import ComputeConfig
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.texts import TextEncoder
from tests.families import bare_modernbert, bare_qwen3
from tests.world import Ance, make_dataset, tree

INSTRUCTION = "Instruct: find the passage\nQuery:"
LOOP = ["loop", "--data", "data", "--refresh-every", 3, "--segments", 2, "--batch-size", 8,
        "--lr", "1e-3", "--depth", 12, "--negatives", 4, "--dtype", "fp32",
        "--keep", 9]  # fmt: skip
QWEN = [*LOOP, "--ckpt", "qwen3", "--lora-rank", 4, "--query-prompt", INSTRUCTION]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    make_dataset(folder / "data")
    bare_qwen3(folder / "qwen3")
    bare_modernbert(folder / "modernbert")
    return Ance(folder)


@pytest.fixture(scope="module")
def lora_run(program):
    done = program(*QWEN, "-o", "lora")
    return program.cwd / "lora", done.stdout + done.stderr


def vectors_of(folder, side, texts=("river word3", "granite bread")):
    return TextEncoder(Checkpoint(folder), side, ComputeConfig(gpus="none", dtype="fp32"))(texts)[0]


def theirs(folder, side, texts=("river word3", "granite bread")):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return {"query": model.encode_query, "passage": model.encode_document}[side](list(texts))


@pytest.mark.long
def test_a_decoder_is_trained_by_an_adapter(program, lora_run):
    run, said = lora_run
    assert "an adapter is trained" in said and "lasttoken -> Normalize" in said
    newest = run / "latest"
    assert (newest / "adapter_config.json").exists() and not (newest / "model.safetensors").exists()
    assert Checkpoint(newest).settings.query_prefix == INSTRUCTION
    for side in ("query", "passage"):
        np.testing.assert_allclose(vectors_of(newest, side), theirs(newest, side), atol=1e-5)
    before = vectors_of(run / "checkpoints" / "step-00000000", "query")
    assert np.abs(vectors_of(newest, "query") - before).max() > 1e-4
    generations = [
        np.load(run / "generations" / name / "embeddings" / "embeddings.npy")
        for name in ("0001", "0002")
    ]
    assert np.abs(np.subtract(*map(np.float32, generations))).max() > 1e-3


@pytest.mark.long
def test_a_killed_run_of_an_adapter_ends_the_same(program, lora_run):
    run = program.cwd / "killed"
    started = program.start(*QWEN, "-o", "killed", start_new_session=True)
    until = time.monotonic() + 120
    while not (run / "checkpoints" / "step-00000003").exists():
        assert time.monotonic() < until and started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    while {path.name for path in (run / "lease").iterdir()} - {"supervisor"}:
        assert time.monotonic() < until, "a child outlived the supervisor"
        time.sleep(0.05)
    program(*QWEN, "-o", "killed")
    newest = "checkpoints/step-00000006"
    assert tree(run / newest) == tree(lora_run[0] / newest)


@pytest.mark.long
def test_a_merged_checkpoint_needs_no_base(program, lora_run, tmp_path):
    done = program("checkpoint", "merge", "lora/latest", "-o", "merged", "--json")
    assert json.loads(done.stdout)["layout"] == "sentence-transformers"
    merged = program.cwd / "merged"
    assert not list(merged.glob("adapter*"))
    for side in ("query", "passage"):
        ours = vectors_of(merged, side)
        np.testing.assert_allclose(ours, vectors_of(lora_run[0] / "latest", side), atol=1e-5)
        np.testing.assert_allclose(ours, theirs(merged, side), atol=1e-5)
    program("checkpoint", "merge", "merged", "-o", "again", code=2)


@pytest.mark.long
def test_an_encoder_with_a_template(program):
    template = "title: {title|none} | text: {text}"
    program(*LOOP, "--ckpt", "modernbert", "--passage-template", template, "--pooling", "cls",
            "-o", "modern")  # fmt: skip
    newest = program.cwd / "modern" / "latest"
    assert Checkpoint(newest).settings.passage_template == template
    for side in ("query", "passage"):
        np.testing.assert_allclose(vectors_of(newest, side), theirs(newest, side), atol=1e-5)
    document = json.loads((program.cwd / "data" / "corpus.jsonl").read_text().splitlines()[0])
    text = f"title: {document['title']} | text: {document['text']}"
    stored = np.load(program.cwd / "modern" / "generations" / "0001"
                     / "embeddings" / "embeddings.npy")  # fmt: skip
    first = program.cwd / "modern" / "checkpoints" / "step-00000000"
    np.testing.assert_allclose(
        stored[0].astype(np.float32), theirs(first, "passage", [text])[0], atol=2e-3
    )
    assert torch.isfinite(torch.from_numpy(stored.astype(np.float32))).all()
