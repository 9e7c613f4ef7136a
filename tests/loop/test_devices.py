"""The devices of the trainer and of the refreshes, on machines of every kind."""

import os
from types import SimpleNamespace

import pytest

from ance_cli.config import LoopDevices
from ance_cli.loop import devices
from ance_cli.loop.devices import Devices, place_devices, split_cpus


@pytest.fixture
def gpus(monkeypatch):
    """A machine with a given number of GPUs."""

    def set_number(number):
        monkeypatch.setattr(devices, "num_gpus", lambda: number)

    return set_number


def asked(flags, ray=None):
    gpus, train_gpus, infer_gpus = flags
    return LoopDevices(gpus=gpus, train_gpus=train_gpus, infer_gpus=infer_gpus, ray=ray)


@pytest.mark.parametrize(
    ("number", "mode", "split", "flags", "expected"),
    [
        (8, "auto", (1, 1), ("all", None, None), ("async", "0,1,2,3", "4,5,6,7")),
        (8, "auto", (3, 1), ("all", None, None), ("async", "0,1,2,3,4,5", "6,7")),
        (8, "auto", (9, 1), ("0-3", None, None), ("async", "0,1,2", "3")),
        (8, "auto", (1, 1), ("all", "0-3", "4-7"), ("async", "0-3", "4-7")),
        (8, "auto", (1, 1), ("all", "0-3", None), ("async", "0-3", "4,5,6,7")),
        (8, "auto", (1, 1), ("all", None, "7"), ("async", "0,1,2,3,4,5,6", "7")),
        (8, "auto", (1, 1), ("all", "0-3", "3"), ("sync", "0-3", "3")),
        (8, "sync", (1, 1), ("all", None, None), ("sync", "all", "all")),
        (1, "auto", (1, 1), ("all", None, None), ("sync", "all", "all")),
        (1, "async", (1, 1), ("0", None, None), ("async", "0", "0")),
        (0, "auto", (1, 1), ("all", None, None), ("sync", "all", "all")),
        (2, "auto", (1, 1), ("none", None, None), ("sync", "none", "none")),
    ],
)
def test_placing(gpus, number, mode, split, flags, expected):
    gpus(number)
    found = place_devices(mode, split, asked(flags))
    assert (found.mode, found.train_gpus, found.infer_gpus) == expected
    assert not found.train_cpus and not found.infer_cpus
    assert found.local_gpus is None


@pytest.mark.parametrize(
    ("number", "mode", "flags", "expected"),
    [
        (2, "auto", ("all", None, None), ("async", "all", "all")),
        (2, "sync", ("0", None, None), ("sync", "0", "all")),
        (2, "auto", ("all", "1", "none"), ("async", "1", "none")),
        (0, "auto", ("none", None, None), ("async", "none", "none")),
    ],
)
def test_a_cluster_leaves_this_machines_gpus_to_the_trainer(gpus, number, mode, flags, expected):
    gpus(number)
    found = place_devices(mode, (1, 1), asked(flags, ray="local"))
    assert (found.mode, found.train_gpus, found.infer_gpus) == expected
    assert not found.train_cpus and not found.infer_cpus
    assert found.local_gpus == "none"


@pytest.mark.parametrize("local_gpus", ["3", "0-1", "all", "none"])
def test_refreshes_in_a_cluster_may_get_gpus_of_this_machine(gpus, local_gpus):
    gpus(4)
    found = place_devices("auto", (1, 1), LoopDevices(ray="local", local_gpus=local_gpus))
    assert (found.train_gpus, found.infer_gpus, found.local_gpus) == ("all", "all", local_gpus)


def test_trainer_and_refreshes_on_one_cpu_are_pinned_apart(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    expected = Devices("async", "all", "all", frozenset({0, 1, 2}), frozenset({3}))
    assert place_devices("async", (3, 1), LoopDevices()) == expected


@pytest.mark.parametrize(
    ("cpus", "split", "sizes"),
    [(8, (1, 1), (4, 4)), (8, (3, 1), (6, 2)), (2, (9, 1), (1, 1)), (1, (1, 1), (1, 1))],
)
def test_cores_are_divided(monkeypatch, cpus, split, sizes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    first, second = split_cpus(split)
    assert (len(first), len(second)) == sizes
    assert cpus == 1 or not first & second


@pytest.mark.parametrize(("initialised", "counted", "number"), [(0, 0, 3), (100, 0, 0), (0, 1, 0)])
def test_the_driver_counts_the_gpus(monkeypatch, initialised, counted, number):
    def count(place):
        place._obj.value = 3
        return counted

    driver = SimpleNamespace(cuInit=lambda flags: initialised, cuDeviceGetCount=count)
    opened = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: opened.append(name) or driver)
    assert devices.num_gpus() == number and opened == ["libcuda.so.1"]


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert devices.num_gpus() == 0
