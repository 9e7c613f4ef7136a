"""Encoding and mining in a real Ray on this machine: the same bytes as one process makes, also when
a worker is killed in the middle."""

import os
import signal
import socket
import sys
import time

import numpy as np
import pytest

from ance_cli.config import EncodeConfig, MineConfig
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.candidates import read_candidates
from ance_cli.formats.dataset import locate
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.jsonl import Skipped
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Silent
from ance_cli.retrieval.dense import vector_source
from ance_cli.stages import ray_workers, tokenize
from ance_cli.stages.encode import encode
from ance_cli.stages.mine import mine
from tests.world import make_dataset

ONE = EncodeConfig(gpus="none", dtype="fp32")
ON_RAY = EncodeConfig(gpus="none", dtype="fp32", cpu_workers=2, ray="local")


class Said(Silent):
    def __init__(self):
        self.texts = []

    def say(self, text):
        self.texts.append(text)


# ---------------------------------------------------------------- without Ray


def joined(address, gpus="all"):
    with ray_workers.joined(address, gpus, 1, Silent()):
        raise AssertionError("there is nothing to join")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageProblem, match="--ray local: Ray is not installed here") as caught:
        joined("local")
    assert "pip install 'ance-cli[ray]'" in caught.value.hint


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "http://head:8265", ":1"])
def test_what_is_no_address(address):
    pytest.importorskip("ray")
    with pytest.raises(UsageProblem, match="expected HOST:PORT, auto or local"):
        joined(address)


def test_an_address_that_does_not_answer_is_told_at_once():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with pytest.raises(UsageProblem, match=f"--ray {address}: nobody answers"):
        joined(address)


def test_ray_chooses_the_gpus():
    with pytest.raises(UsageProblem, match="which GPUs a worker gets is Ray's to say"):
        joined("local", "0,1")


def test_an_index_is_not_searched_in_parts(checkpoint, dataset, tmp_path):
    source = vector_source(None, tmp_path / "index")
    with pytest.raises(UsageProblem, match="--ray searches embeddings"):
        mine(Checkpoint(checkpoint), locate(dataset, "train"), source, tmp_path / "n.jsonl",
             encode_config=ON_RAY)  # fmt: skip


def test_folders_that_a_node_does_not_have(tmp_path):
    with pytest.raises(UsageProblem, match="not to be seen on"):
        ray_workers._check_shared(str(tmp_path / "elsewhere"))


# ---------------------------------------------------------------- with it


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A Ray of two processors on this machine, as `ray start --head` makes one; its address."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR",
                     log_to_driver=False)  # fmt: skip
    yield found.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    """A dataset in blocks of 5 documents, its embeddings and negatives by one process."""
    folder = tmp_path_factory.mktemp("ray")
    make_dataset(folder / "data")
    opened = Checkpoint(checkpoint), locate(folder / "data", "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "BLOCK_DOCS", 5)
        encode(*opened, folder / "emb", ONE)
    mine(*opened, vector_source(folder / "emb", None), folder / "ann.jsonl", MineConfig(depth=20),
         ONE)  # fmt: skip
    return folder, opened
