"""The names in a checkpoint folder, and what is said of a JSON file there that is broken."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from ance_cli.errors import BadInput
from ance_cli.formats.checkpoint_folder import (
    COPY_AGAIN,
    CheckpointFolder,
    ModuleFolder,
    read_checkpoint_json,
    repeats_settings,
    write_json,
)
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings


@dataclass
class Listed:
    type: str
    path: str


def test_names(tmp_path):
    folder, module = CheckpointFolder(tmp_path), ModuleFolder(tmp_path)
    names = {
        folder.settings: "ance.json",
        folder.modules: "modules.json",
        folder.sentence_transformers_config: "config_sentence_transformers.json",
        folder.card: "README.md",
        module.config: "config.json",
        module.weights: "model.safetensors",
        module.router_config: "router_config.json",
        module.sentence_bert_config: "sentence_bert_config.json",
        module.tokenizer_config: "tokenizer_config.json",
    }
    assert names == {path: path.name for path in names}
    assert {path.parent for path in (*names, *module.tokenizers)} == {tmp_path}


def test_a_checkpoint_has_the_files_that_are_named(checkpoint):
    folder, module = CheckpointFolder(checkpoint), ModuleFolder(checkpoint)
    for path in (folder.settings, folder.modules, folder.sentence_transformers_config,
                 module.config, module.weights, module.sentence_bert_config):  # fmt: skip
        assert path.is_file()
    assert any(path.is_file() for path in module.tokenizers)


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        ("ance.json", True),
        ("modules.json", True),
        ("config_sentence_transformers.json", True),
        ("sentence_bert_config.json", True),
        ("config.json", False),
        ("model.safetensors", False),
        ("tokenizer.json", False),
        ("tokenizer_config.json", False),
        ("router_config.json", False),
    ],
)
def test_files_that_only_repeat_the_settings(tmp_path, name, repeats):
    assert repeats_settings(tmp_path / "deep" / name) == repeats


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON ("),
        ("{", "not valid JSON ("),
        ("[" * 5000, "not valid JSON ("),
        ('["\udcff"]', "not valid JSON ("),
        ("{}", "expected a list, found object"),
        ("null", "expected a list, found null"),
        ("[1]", "'[0]': expected a JSON object, found int"),
        ('[{"type": "Pooling"}]', "has no [0].path"),
        ('[{"type": "Pooling", "path": 1}]', "'[0].path': expected str, found int"),
    ],
)
def test_broken_json_is_named(tmp_path, text, reason):
    path = CheckpointFolder(tmp_path).modules
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput) as caught:
        read_checkpoint_json(path, list[Listed])
    assert caught.value.what.startswith(f"{path}: {reason}")
    assert caught.value.hint == COPY_AGAIN


def test_a_missing_file_is_named(tmp_path):
    path = CheckpointFolder(tmp_path).modules
    with pytest.raises(BadInput) as caught:
        read_checkpoint_json(path, list[Listed])
    assert caught.value.what == f"{path}: no such file; the checkpoint is incomplete"


def test_further_keys_are_ignored(tmp_path):
    path = CheckpointFolder(tmp_path).modules
    write_json(path, [{"idx": 0, "type": "Pooling", "path": "1_Pooling"}])
    assert read_checkpoint_json(path, list[Listed]) == [Listed("Pooling", "1_Pooling")]


# ---------------------------------------------------------------- ance.json


@pytest.fixture
def copy(tmp_path, checkpoint):
    return Path(shutil.copytree(checkpoint, tmp_path / "ckpt"))


def test_settings_come_back_as_written(copy):
    settings = EncodingSettings(scale=20.0, segmentation="slice", training_step=7)
    write_json(CheckpointFolder(copy).settings, {**asdict(settings), "later": 1})
    assert Checkpoint(copy).settings == settings


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query_length": "x"}, "'query_length': expected int, found str"),
        ({"query_length": True}, "'query_length': expected int, found bool"),
        ({"query_length": 8.5}, "'query_length': expected int, found float"),
        ({"lowercase": 1}, "'lowercase': expected bool, found int"),
        ({"query_prefix": None}, "'query_prefix': expected str, found null"),
        ({"scale": "1"}, "'scale': expected float, found str"),
        ({"similarity": "l2"}, "'similarity': expected one of dot, cosine, found 'l2'"),
        ({"segmentation": 1}, "'segmentation': expected str, found int"),
    ],
)
def test_settings_of_another_type_are_refused(copy, change, reason):
    path = CheckpointFolder(copy).settings
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput) as caught:
        Checkpoint(copy)
    assert caught.value.what == f"{path}: {reason}"
    assert caught.value.hint == "fix the value, or restore the file"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_no_object_are_refused(copy, text):
    path = CheckpointFolder(copy).settings
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        Checkpoint(copy)
    assert caught.value.what.startswith(f"{path}: ")
