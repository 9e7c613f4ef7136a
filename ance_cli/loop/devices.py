"""Which devices the trainer and the refreshes of a loop get, decided without torch."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace

from ance_cli.config import LoopDevices
from ance_cli.models.devices import parse_gpus


@dataclass(frozen=True)
class Devices:
    """The GPUs of the trainer and of the refreshes, as `--gpus` spells them. If both work on CPUs
    at the same time, the CPUs that each is pinned to (empty = not pinned).

    `mode` is `sync` or `async`; `ray` names the cluster of the refreshes, and `local_gpus` are the
    GPUs for what they compute on this machine.
    """

    mode: str
    train_gpus: str
    infer_gpus: str
    train_cpus: frozenset[int] = frozenset()
    infer_cpus: frozenset[int] = frozenset()
    ray: str | None = None
    local_gpus: str | None = None


def place_devices(mode: str, split: tuple[int, int], asked: LoopDevices) -> Devices:
    """Place the trainer and the refreshes.

    `asked.train_gpus` and `asked.infer_gpus` take precedence; otherwise `asked.gpus` are divided in
    the ratio `split`. `auto` becomes `async` if both have GPUs of their own, otherwise `sync`;
    with `async` they may also share a device. With `asked.ray` the refreshes get their devices from
    the cluster, and all GPUs of this machine are for the trainer: what a refresh computes here runs
    on the CPU unless `asked.local_gpus` says otherwise.
    """
    if asked.ray:
        return _placed_with_ray(mode, asked)
    gpus, train_gpus, infer_gpus = asked.gpus, asked.train_gpus, asked.infer_gpus
    numbers = parse_gpus(gpus)
    available = list(range(num_gpus())) if numbers is None else numbers
    if train_gpus is not None and infer_gpus is not None:
        train, infer = parse_gpus(train_gpus), parse_gpus(infer_gpus)
        apart = bool(train and infer and not set(train) & set(infer))
        return _placed(mode, split, apart, train_gpus, infer_gpus)
    if train_gpus is not None or infer_gpus is not None:
        named = parse_gpus(train_gpus or infer_gpus or "") or []
        rest = _listed([gpu for gpu in available if gpu not in named])
        apart = bool(named) and rest != "none"
        if not apart:
            rest = gpus
        return _placed(mode, split, apart, train_gpus or rest, infer_gpus or rest)
    if len(available) < 2 or mode == "sync":
        return _placed(mode, split, False, gpus, gpus)
    first = min(max(round(len(available) * split[0] / sum(split)), 1), len(available) - 1)
    return _placed(mode, split, True, _listed(available[:first]), _listed(available[first:]))


def _placed_with_ray(mode: str, asked: LoopDevices) -> Devices:
    train_gpus = asked.train_gpus or asked.gpus
    parse_gpus(train_gpus)
    local_gpus = asked.local_gpus or "none"
    parse_gpus(local_gpus, "--local-gpus")
    of_cluster = asked.infer_gpus or ("none" if asked.gpus == "none" else "all")
    chosen = "async" if mode == "auto" else mode
    return Devices(chosen, train_gpus, of_cluster, ray=asked.ray, local_gpus=local_gpus)


def _placed(mode: str, split: tuple[int, int], apart: bool, train: str, infer: str) -> Devices:
    chosen = ("async" if apart else "sync") if mode == "auto" else mode
    placed = Devices(chosen, train, infer)
    if chosen == "async" and not apart and _on_cpu(train) and _on_cpu(infer):
        train_cpus, infer_cpus = split_cpus(split)
        return replace(placed, train_cpus=train_cpus, infer_cpus=infer_cpus)
    return placed


def split_cpus(split: tuple[int, int]) -> tuple[frozenset[int], frozenset[int]]:
    """The CPUs of this process, divided between the trainer and the refreshes in the ratio `split`,
    at least one each; a single CPU is shared."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        return frozenset(cpus), frozenset(cpus)
    first = round(len(cpus) * split[0] / sum(split))
    first = min(max(first, 1), len(cpus) - 1)
    return frozenset(cpus[:first]), frozenset(cpus[first:])


def _on_cpu(gpus: str) -> bool:
    return gpus == "none" or (gpus == "all" and not num_gpus())


def _listed(gpus: list[int]) -> str:
    return ",".join(map(str, gpus)) or "none"


def num_devices(gpus: str) -> int:
    """How many GPUs `--gpus` names; 0 = the CPU."""
    numbers = parse_gpus(gpus)
    return num_gpus() if numbers is None else len(numbers)


def num_gpus() -> int:
    """The GPUs that CUDA sees, counted by the driver: in a container, under
    `CUDA_VISIBLE_DEVICES` or divided by MIG they are others than the machine's."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is no driver
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
