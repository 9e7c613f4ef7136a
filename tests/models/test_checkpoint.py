import json
import shutil

import pytest

from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import load_encoder


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_reads_its_own_pins(checkpoint):
    settings = Checkpoint(checkpoint).settings
    assert (settings.query_length, settings.passage_length, settings.similarity) == (12, 24, "dot")


def test_tower_hash_is_of_the_content_not_of_the_place(checkpoint, copy):
    assert Checkpoint(copy).tower_hash("passage") == Checkpoint(checkpoint).tower_hash("passage")


def test_tower_hash_follows_the_weights(checkpoint, copy):
    weights = copy / "2_Dense" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for side in ("query", "passage"):
        assert Checkpoint(copy).tower_hash(side) != Checkpoint(checkpoint).tower_hash(side)


def test_a_pin_of_one_side_leaves_the_other_tower_alone(checkpoint):
    plain = Checkpoint(checkpoint)
    longer = plain.with_settings(query_length=16)
    assert longer.tower_hash("passage") == plain.tower_hash("passage")
    assert longer.tower_hash("query") != plain.tower_hash("query")
    stepped = plain.with_settings(training_step=5)
    assert stepped.tower_hash("query") == plain.tower_hash("query")


def test_a_length_beyond_the_positions_is_refused(checkpoint):
    with pytest.raises(BadInput, match="takes at most 128 tokens, --passage-length asks for 200"):
        Checkpoint(checkpoint).with_settings(passage_length=200)


def test_no_folder():
    with pytest.raises(BadInput, match="nowhere: no such checkpoint folder"):
        Checkpoint(__import__("pathlib").Path("nowhere"))


def test_without_a_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="the checkpoint has no tokenizer"):
        Checkpoint(copy)


def test_without_the_weights_of_the_head(copy):
    (copy / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="the weights of the Dense are missing"):
        Checkpoint(copy)


def test_pickled_weights_are_never_loaded(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BadInput, match="holds no weights in safetensors format"):
        Checkpoint(copy)


def test_an_unknown_module_is_refused(copy):
    modules = json.loads((copy / "modules.json").read_text())
    modules[3]["type"] = "sentence_transformers.models.Nothing"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadInput, match="3_LayerNorm: the Nothing does not load"):
        load_encoder(Checkpoint(copy))


def test_weights_that_lack_a_layer_are_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="1 weights are not in the file"):
        load_encoder(Checkpoint(copy))


def test_a_head_without_its_tensor_is_refused(copy):
    import torch
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, copy / "2_Dense" / "model.safetensors")
    with pytest.raises(BadInput, match="2_Dense: the Dense does not load .*linear.weight"):
        load_encoder(Checkpoint(copy))


@pytest.mark.parametrize("place", [".", "2_Dense", "3_LayerNorm"])
def test_weights_that_are_cut_short_are_refused(copy, place):
    weights = copy / place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BadInput, match="does not load") as problem:
        load_encoder(Checkpoint(copy))
    assert str(weights.parent) in problem.value.what and "copy" in problem.value.hint


def test_a_plain_encoder_does_not_encode(backbone):
    with pytest.raises(BadInput, match="has no pooling and head") as problem:
        load_encoder(Checkpoint(backbone))
    assert "train-segment" in problem.value.hint


def test_sentence_transformers_defaults_are_cosine_with_a_scale(tmp_path, backbone):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path / "st"
    SentenceTransformer(
        modules=[Transformer(str(backbone), max_seq_length=20), Pooling(32, "mean")]
    ).save(str(folder))
    found = Checkpoint(folder)
    assert (found.settings.similarity, found.settings.scale) == ("cosine", 20.0)


def test_an_unknown_segmentation_is_refused(copy):
    settings = json.loads((copy / "ance.json").read_text())
    (copy / "ance.json").write_text(json.dumps({**settings, "segmentation": "sentences"}))
    with pytest.raises(BadInput, match="'segmentation': expected one of first, special, slice"):
        Checkpoint(copy)
