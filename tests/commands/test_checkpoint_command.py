"""`ance checkpoint` as the binary: what it shows, and what it makes."""

import json

import pytest
import torch

from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.foreign import read_weights
from tests.hub_server import running_hub
from tests.models.test_encoder import our_vectors
from tests.world import tree


def test_inspect_shows_what_a_checkpoint_is(ance, checkpoint):
    found = json.loads(ance("checkpoint", "inspect", checkpoint, "--json").stdout)
    tower = found["towers"]["shared"]
    assert tower["model_type"] == "bert" and tower["layers"] == 2 and tower["hidden_size"] == 32
    assert tower["modules"] == ["Transformer", "Pooling", "Dense", "LayerNorm"]
    weights = [read_weights(path) for path in checkpoint.rglob("*.safetensors")]
    numbers = sum(tensor.numel() for each in weights for tensor in each.values())
    assert found["parameters"] == tower["parameters"] == numbers
    assert tower["dtypes"] == ["F32"]
    assert (found["dim"], found["similarity"], found["pinned"]) == (32, "dot", True)
    assert found["encoding"]["query_length"] == 12 and found["encoding"]["passage_length"] == 24
    hashes = {side: Checkpoint(checkpoint).tower_hash(side) for side in ("query", "passage")}
    assert found["hashes"] == hashes and found["lineage"] == {"training_step": 0}
    shown = ance("checkpoint", "inspect", checkpoint).stdout
    assert "query_length 12" in shown and "LayerNorm" in shown and "separator ' '" in shown


def test_inspect_shows_both_towers_and_plain_encoders(inside, two_towers, backbone):
    found = json.loads(inside("checkpoint", "inspect", two_towers, "--json").stdout)
    assert set(found["towers"]) == {"query", "passage"}
    each = [tower["parameters"] for tower in found["towers"].values()]
    assert each[0] == each[1] and found["parameters"] == sum(each)
    plain = json.loads(inside("checkpoint", "inspect", backbone, "--json").stdout)
    assert plain["has_head"] is False and plain["pinned"] is False


def test_inspect_of_a_runs_checkpoint_names_the_start(inside, dataset, backbone):
    inside("bm25-negatives", "--engine", "bm25s", "--data", "data", "--split", "train",
           "--depth", 10, "--negatives", 2, "-o", "bm25.jsonl")  # fmt: skip
    inside("train-segment", "bm25.jsonl", "--data", "data", "--ckpt", backbone, "--steps", 1,
           "--batch-size", 2, "-o", "run", "--gpus", "none")  # fmt: skip
    found = json.loads(inside("checkpoint", "inspect", "run/latest", "--json").stdout)
    assert found["lineage"]["training_step"] == 1
    assert found["lineage"]["run"].endswith("/run")
    assert found["lineage"]["start_checkpoint"] == str(backbone)


@pytest.fixture
def pickled(tmp_path, backbone):
    """A plain encoder whose weights are in PyTorch's older form."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in backbone.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save(read_weights(backbone / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


def test_convert_once_and_again(inside, pickled):
    words = ["checkpoint", "convert", "plain", "--pooling", "mean", "-o", "ours"]
    assert json.loads(inside(*words, "--dry-run", "--json").stdout)["pooling"] == "mean"
    assert not (inside.cwd / "ours").exists()
    found = json.loads(inside(*words, "--passage-length", 20, "--json").stdout)
    assert (found["layout"], found["towers"], found["dim"]) == ("plain", "shared", 32)
    assert found["encoding"]["passage_length"] == 20
    names = {path.name for path in inside.cwd.iterdir() if not path.name.endswith(".lease")}
    assert names == {"plain", "ours"}
    before = tree(inside.cwd / "ours")
    assert "up to date" in inside(*words, "--passage-length", 20).stderr
    assert "was made from other files or settings" in inside(*words, code=4).stderr
    assert tree(inside.cwd / "ours") == before
    inside(*words, "--force")
    assert Checkpoint(inside.cwd / "ours").settings.passage_length == 128
    shown = json.loads(inside("checkpoint", "inspect", "ours", "--json").stdout)
    origin = shown["lineage"]["converted_from"]
    assert origin["layout"] == "plain" and "plain/pytorch_model.bin" in origin["files"]
    assert our_vectors(inside.cwd / "ours").shape == (5, 32)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["convert", "plain", "-o", "ours"], 2, "is a plain encoder: it does not define"),
        (["convert", "plain", "--pooling", "cls"], 2, "name it with -o DIR"),
        (["convert", "nowhere", "-o", "ours"], 3, "nowhere: no such file or folder"),
        (
            ["convert", "plain", "--pooling", "cls", "-o", "plain", "--force"],
            2,
            "which this command reads",
        ),
        (["inspect", "plain"], 3, "holds no weights in safetensors format"),
        (["inspect", "plain", "plain"], 2, "inspect shows one checkpoint"),
        (["inspect", "plain", "-o", "x"], 2, "inspect shows one checkpoint"),
        (["repair", "plain"], 2, "'repair' is not one of"),
        (["convert", "plain", "--pooling", "cls", "-o", "taken"], 4, "made from an unknown source"),
    ],
)
def test_impossible_exports_are_refused(inside, pickled, words, code, said):
    (inside.cwd / "taken").mkdir()
    (inside.cwd / "taken" / "mine.txt").write_text("keep")
    found = inside("checkpoint", *words, code=code)
    assert said in " ".join(found.stderr.split())
    assert not (inside.cwd / "ours").exists() and (inside.cwd / "taken" / "mine.txt").exists()


@pytest.mark.long
def test_convert_what_lies_on_the_hub(ance, inside, pickled):
    """Such models often have their older weights alone, which no other command fetches."""
    words = ["checkpoint", "convert", "--pooling", "mean"]
    inside(*words, "plain", "-o", "ours")
    with running_hub() as hub:
        hub.models["org/plain"] = [tree(pickled) | {"model.py": b"never", "tf_model.h5": b"never"}]
        there = {**hub.environment, "HF_HOME": str(ance.cwd / "hub")}
        ance(*words, "org/plain", "-o", "theirs", **there)
        asked = " ".join(hub.asked)
        assert "pytorch_model.bin" in asked and "model.py" not in asked and ".h5" not in asked
        found = ance("encode", "--ckpt", "org/plain", "--corpus", "x", "-o", "emb", code=3, **there)
        assert "holds no weights in safetensors format" in " ".join(found.stderr.split())
        found = ance(*words, "org/other", "-o", "x", code=3, **there)
        assert "the model hub returned no model of that name" in found.stderr
    for name in ("ours", "theirs"):
        weights = tree(ance.cwd / name)
        del weights["ance.json"]  # from which files it was made
        assert weights == {k: v for k, v in tree(ance.cwd / "ours").items() if k != "ance.json"}


def test_weights_that_are_cut_short_are_named(inside, pickled):
    whole = (pickled / "pytorch_model.bin").read_bytes()
    (pickled / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    found = inside("checkpoint", "convert", "plain", "--pooling", "cls", "-o", "ours", code=3)
    assert "its weights cannot be read" in " ".join(found.stderr.split())
