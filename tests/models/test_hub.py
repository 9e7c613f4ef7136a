"""A checkpoint by its name on the hub: what is asked for, what is pinned, what is said without."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.hub import fetched, origin

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch, checkpoint):
    """A hub that has one model; gives what it was asked."""
    asked = []

    def snapshot_download(repo_id, revision=None, allow_patterns=None):
        asked.append((repo_id, revision, allow_patterns))
        if repo_id != "org/small.model":
            raise LocalEntryNotFoundError("Got: no network\nand more words")
        folder = tmp_path / f"models--org--small.model/snapshots/{COMMIT}"
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_model_of_the_hub_is_fetched_without_pickles_and_pinned(hub, checkpoint):
    found = Checkpoint(Path("org/small.model"))
    assert found.tower_hash("query") == Checkpoint(checkpoint).tower_hash("query")
    assert found.shown == Path("org/small.model")
    assert origin(found.path) == ("org/small.model", COMMIT)
    Checkpoint(Path(f"org/small.model@{COMMIT}"))
    assert [call[:2] for call in hub] == [("org/small.model", None), ("org/small.model", COMMIT)]
    patterns = hub[0][2]
    assert "*.safetensors" in patterns and "*.json" in patterns
    assert not any(word in pattern for pattern in patterns for word in ("bin", "pt", "pkl", "py"))


def test_what_lies_here_is_never_asked_for(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("runs/latest", "bert", "/org/name", "../org/name", "a/b/c", "org/na me", "-o/x"):
        assert fetched(Path(name)) == Path(name)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert fetched(Path("org/name")) == Path("org/name")
    assert hub == []
    assert origin(tmp_path) is None


def test_without_the_model_the_error_names_the_reason(hub):
    with pytest.raises(BadInput) as caught:
        Checkpoint(Path("other/model"))
    assert caught.value.what == (
        "other/model: no such checkpoint folder, and the model hub returned no model of that name "
        "(Got: no network)"
    )
    assert "ORG/NAME@REVISION" in caught.value.hint


def test_offline_is_said(ance, dataset):
    found = ance("encode", "--ckpt", "org/name", "--data", "data", "-o", "emb", code=3,
                 HF_HUB_OFFLINE="1")  # fmt: skip
    assert (
        "org/name: no such checkpoint folder, and the model hub returned no model" in found.stderr
    )
    assert "HF_TOKEN" in found.stderr
