"""What a refresh in a Ray cluster computes on this machine, and on which GPUs."""

import sys
from collections import Counter
from contextlib import contextmanager

import pytest

from ance_cli.call import Call
from ance_cli.config import DriverConfig, FollowConfig, LoopDevices, RefreshDevices
from ance_cli.errors import UsageProblem
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop import refresh_daemon
from ance_cli.models import devices, ray_cluster
from tests.world import make_cross_encoder

REFRESH = ["refresh", "run", "--depth", 12, "--negatives", 4, "--encode-dtype", "fp32"]
HERE, TEACHER, INDEX, WORKERS = "texts", "cross_encoder", "faiss_gpu", "encode"
"""Modules that choose devices: for query vectors and the probe, for the teacher, to build an index,
for workers."""


@pytest.fixture
def chosen(monkeypatch):
    """How often which module chose which GPUs. Every GPU is this machine's CPU, and the cluster is
    this process."""
    counts, real = Counter(), devices.choose_devices

    def choose_devices(gpus, flag="--gpus"):
        if flag == "--gpus":
            counts[sys._getframe(1).f_globals["__name__"].rpartition(".")[2], gpus] += 1
        return real("none")

    @contextmanager
    def joined(config, cpu_workers, reporter):
        if config.ray is not None:
            counts["cluster", config.gpus] += 1
        yield None

    monkeypatch.setattr(devices, "choose_devices", choose_devices)
    monkeypatch.setattr(ray_cluster, "joined", joined)
    return counts


@pytest.fixture
def world(inside, dataset, checkpoint):
    """A run without a generation."""
    inside("train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0,
           "--total-steps", 9, "-o", "run")  # fmt: skip
    return inside


@pytest.mark.parametrize(
    ("flags", "there", "here"),
    [
        (["--ray", "head:1", "--local-gpus", "0-1"], "all", "0-1"),
        (["--ray", "head:1", "--local-gpus", "none"], "all", "none"),
        (["--ray", "head:1", "--gpus", "none", "--local-gpus", "0"], "none", "0"),
        (["--ray", "head:1"], "all", "all"),
        (["--ray", "head:1", "--gpus", "none"], "none", "none"),
    ],
)
def test_only_the_workers_get_the_gpus_of_the_cluster(world, chosen, flags, there, here):
    """Here: queries for mining, the teacher, the probe, queries of dev."""
    make_cross_encoder(world.cwd / "teacher")
    world(*REFRESH, "--teacher", "teacher", "--teacher-max", 0.9, *flags)
    expected = Counter({("cluster", there): 2, (WORKERS, there): 1})
    expected.update({(HERE, here): 3, (TEACHER, here): 1})
    assert chosen == expected


def test_an_index_is_searched_with_the_gpus_of_this_machine(world, chosen):
    world(*REFRESH, "--index-factory", "Flat", "--ray", "head:1", "--local-gpus", "1")
    here = {(INDEX, "1"): 1, (HERE, "1"): 3}
    assert chosen == {("cluster", "all"): 1, (WORKERS, "all"): 1, **here}


def test_without_a_cluster_everything_is_on_the_same_gpus(world, chosen):
    world(*REFRESH, "--gpus", "2")
    assert chosen == {(WORKERS, "2"): 1, (HERE, "2"): 3}


def test_drift_is_measured_with_the_gpus_of_this_machine(world, chosen):
    world(*REFRESH)
    chosen.clear()
    run = RunFolder(world.cwd / "run")
    where = RefreshDevices(ray="head:1", local_gpus="0")
    found = refresh_daemon._Progress.of(run)
    assert refresh_daemon._is_near(run, found, FollowConfig(drift_threshold=0), where, Call())
    assert chosen == {(HERE, "0"): 2}


@pytest.mark.parametrize("config", [DriverConfig, RefreshDevices, LoopDevices])
def test_without_a_cluster_the_setting_is_refused(config):
    assert config(ray="auto", local_gpus="0").local_gpus == "0"
    with pytest.raises(UsageProblem, match="--local-gpus 0 without --ray") as caught:
        config(local_gpus="0")
    assert "--gpus" in caught.value.hint


def test_gpus_that_are_not_here_are_refused_before_the_cluster_works(world, dataset, checkpoint):
    mine = ["mine", "--ckpt", checkpoint, "--data", "data", "--embeddings", "x", "-o", "n.jsonl"]
    for command in (REFRESH, [*REFRESH, "--follow"], mine):
        for gpus, words in (
            ("90", "--local-gpus 90: there is no GPU 90"), ("0-", "--local-gpus '0-': expected"),
            ("3-2", "hint: --local-gpus 2-3"),
        ):  # fmt: skip
            assert words in world(*command, "--ray", "local", "--local-gpus", gpus, code=2).stderr
    assert not list((world.cwd / "run" / "generations").iterdir())
