"""The disk space that a loop needs, against known checkpoints and corpora."""

import shutil
from types import SimpleNamespace

import pytest

from ance_cli.call import Call
from ance_cli.config import LoopConfig, TrainConfig
from ance_cli.errors import BadInput
from ance_cli.loop import disk
from ance_cli.loop.loop import loop
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Silent


class Listening(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def need(tmp_path, dataset, checkpoint, reporter=Silent(), **settings):
    given = {"data": dataset, "ckpt": checkpoint, "passage_length": 64, **settings}
    config = LoopConfig(refresh_every=10, segments=2)
    found = loop(tmp_path / "run", config, given=given, call=Call(dry_run=True, reporter=reporter))
    return found["disk_bytes"]


def test_weights_are_counted_in_float32_whatever_the_file_holds(checkpoint, backbone, tmp_path):
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(backbone, add_pooling_layer=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = 32 * 32 + 3 * 32
    tokenizer = sum(path.stat().st_size for path in backbone.glob("*.json"))
    found = disk._weight_bytes(Checkpoint(backbone), TrainConfig())
    assert found == 4 * (parameters + head) + tokenizer
    assert disk._weight_bytes(Checkpoint(backbone), TrainConfig(towers="two")) == 2 * found
    headed = disk._weight_bytes(Checkpoint(checkpoint), TrainConfig())
    assert 4 * (parameters + head) < headed < found + 3000
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    assert disk._float32_bytes(file) == 4 * parameters > 1.5 * file.stat().st_size
    file.write_bytes(b"not tensors")
    with pytest.raises(BadInput, match="not a complete safetensors file"):
        disk._float32_bytes(file)


def test_it_follows_the_settings(tmp_path, dataset, checkpoint):
    plain = need(tmp_path, dataset, checkpoint)
    maxp = need(tmp_path, dataset, checkpoint, segmentation="special", max_segments=3)
    vectors = 64 * 32 * 2
    assert maxp["embeddings"] - plain["embeddings"] == 3 * 2 * vectors
    indexed = need(tmp_path, dataset, checkpoint, index_factory="Flat")
    guarded = need(tmp_path, dataset, checkpoint, guard=str(dataset))
    assert guarded["embeddings"] * 3 == plain["embeddings"] * 4, "as large as the corpus, once"
    assert guarded["records"] > plain["records"]
    assert plain["index"] == 0 and indexed["index"] > 3 * 2 * vectors
    assert plain["checkpoints"] == 4 * plain["states"] / 9  # three, and one being written
    assert plain["used"] == 0 and plain["free"] > 0
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_is_reported(tmp_path, dataset, checkpoint, monkeypatch):
    reporter = Listening()
    need(tmp_path, dataset, checkpoint, reporter)
    assert reporter.warnings == []
    asked = []

    def usage(path):
        asked.append(path)
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert need(tmp_path, dataset, checkpoint, reporter)["free"] == 1000
    assert asked == [tmp_path]
    (warning,) = reporter.warnings
    assert "run: this run may need 0.0 GB; it has 0.0 GB, and 0.0 GB are free" in warning
