"""Fixtures over the small world of `world.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# two workers share two cores: one thread each, for this process and for the programs it starts
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from tests.world import Ance, AnceInside, data_root, make_backbone, make_dataset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("ANCE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_environment():
    """What a command sets for its process (`--threads`) ends with the test, not in a later test's
    programs: sums of another number of threads differ in their last bits."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def test_data() -> Path:
    return data_root("ANCE_TEST_DATA")


@pytest.fixture
def test_weights() -> Path:
    return data_root("ANCE_TEST_WEIGHTS")


@pytest.fixture
def dataset(tmp_path) -> Path:
    return make_dataset(tmp_path / "data")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A plain encoder without a retrieval head."""
    return make_backbone(tmp_path_factory.mktemp("backbone"))


def _with_head(folder: Path, backbone: Path, similarity: str) -> Path:
    from dataclasses import replace

    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import save_dual, start_dual
    from ance_cli.models.tokens import Tokenizer

    os.environ.setdefault("ANCE_CACHE_DIR", str(folder / "cache"))
    plain = Checkpoint(backbone)
    settings = replace(plain.settings, query_length=12, passage_length=24, similarity=similarity)
    dual, _ = start_dual(plain, None, seed=1, similarity=similarity)
    save_dual(dual, Tokenizer(plain), settings, folder / "ckpt")
    return folder / "ckpt"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, backbone) -> Path:
    """An encoder with the paper's head ([CLS] -> Linear -> LayerNorm), ready to encode."""
    return _with_head(tmp_path_factory.mktemp("checkpoint"), backbone, "dot")


@pytest.fixture(scope="session")
def cosine_checkpoint(tmp_path_factory, backbone) -> Path:
    """An encoder whose vectors have length one."""
    return _with_head(tmp_path_factory.mktemp("cosine"), backbone, "cosine")


@pytest.fixture(scope="session")
def two_towers(tmp_path_factory, checkpoint) -> Path:
    """Two encoders of that kind, of which the query encoder has moved away from the other one."""
    import torch

    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import save_dual, start_dual
    from ance_cli.models.tokens import Tokenizer

    shared = Checkpoint(checkpoint)
    dual, _ = start_dual(shared, None, seed=1, towers="two")
    with torch.no_grad():
        for parameter in dual.query.parameters():
            parameter.mul_(1.3)
    folder = tmp_path_factory.mktemp("two") / "ckpt"
    save_dual(dual, Tokenizer(shared), shared.settings, folder)
    return folder


@pytest.fixture
def ance(tmp_path) -> Ance:
    return Ance(tmp_path)


@pytest.fixture
def inside(tmp_path) -> AnceInside:
    """As `ance`, in this process: where the command line is meant and not the program."""
    return AnceInside(tmp_path)
