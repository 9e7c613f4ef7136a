"""Fixtures over the small world of `world.py`."""

from __future__ import annotations

import os
from dataclasses import replace
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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, backbone) -> Path:
    """An encoder with the paper's head ([CLS] -> Linear -> LayerNorm), ready to encode."""
    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import Start, save_dual, start_dual

    os.environ.setdefault("ANCE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    plain = Checkpoint(backbone)
    settings = replace(plain.settings, query_length=12, passage_length=24)
    dual, _ = start_dual(plain, Start(head="paper", seed=1))
    folder = tmp_path_factory.mktemp("checkpoint") / "ckpt"
    save_dual(dual, settings, folder)
    return folder


@pytest.fixture(scope="session")
def spread_checkpoints(tmp_path_factory, checkpoint) -> dict[str, Path]:
    """Similarity -> such an encoder, whose vectors differ from text to text.

    Random weights make nearly the same vector of every text; here the head takes away what the
    texts have in common.
    """
    import torch

    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import load_dual, save_dual
    from ance_cli.models.encoder import with_normalize
    from ance_cli.models.tokens import Tokenizer

    start = Checkpoint(checkpoint)
    tokenizer, folders = Tokenizer(start), {}
    texts = tokenizer([f"river word{n} bread" for n in range(16)], "query")
    ids, mask = map(torch.from_numpy, texts.padded(range(16), 0))
    for similarity in ("dot", "cosine"):
        dual = load_dual(start)
        with torch.no_grad():
            hidden = dual.query.backbone(ids, mask).last_hidden_state[:, 0]
            linear = dual.query.chain[2].linear
            linear.bias -= linear.weight @ hidden.mean(0)
        if similarity == "cosine":
            with_normalize(dual.query)
        folder = tmp_path_factory.mktemp("spread") / similarity
        save_dual(dual, replace(start.settings, similarity=similarity), folder)
        folders[similarity] = folder
    return folders


@pytest.fixture(scope="session")
def two_towers(tmp_path_factory, checkpoint) -> Path:
    """Two encoders of that kind, of which the query encoder has moved away from the other one."""
    import torch

    from ance_cli.models.checkpoint import Checkpoint
    from ance_cli.models.dual import Start, save_dual, start_dual

    shared = Checkpoint(checkpoint)
    dual, _ = start_dual(shared, Start(towers="two"))
    with torch.no_grad():
        for parameter in dual.query.parameters():
            parameter.mul_(1.3)
    folder = tmp_path_factory.mktemp("two") / "ckpt"
    save_dual(dual, shared.settings, folder)
    return folder


@pytest.fixture
def ance(tmp_path) -> Ance:
    return Ance(tmp_path)


@pytest.fixture
def inside(tmp_path) -> AnceInside:
    """As `ance`, in this process: where the command line is meant and not the program."""
    return AnceInside(tmp_path)
