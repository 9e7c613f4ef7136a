"""Which devices the two sides of a loop get, decided without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ance_cli.models.devices import parse_gpus


@dataclass(frozen=True)
class Devices:
    """GPUs of each side in the language of `--gpus`, and where both work on CPUs, which of those
    each is pinned to (empty = all of them). `mode` is `sync` or `async`."""

    mode: str
    train_gpus: str
    infer_gpus: str
    train_cpus: frozenset[int] = frozenset()
    infer_cpus: frozenset[int] = frozenset()


def place_devices(
    mode: str,
    split: tuple[int, int],
    gpus: str,
    train_gpus: str | None,
    infer_gpus: str | None,
    in_ray: bool = False,
) -> Devices:
    """Place trainer and inferencer.

    GPUs that were named for one side are that side's; else those of `gpus` are dealt out in the
    ratio `split`. `auto` runs side by side where each has GPUs of its own, and in turn otherwise;
    `async` makes them share a device, too. With `in_ray` the inferencer's devices are a cluster's,
    which deals them out itself: all GPUs of this machine are the trainer's.
    """
    if in_ray:
        parse_gpus(train_gpus or gpus)
        of_cluster = infer_gpus or ("none" if gpus == "none" else "all")
        return Devices("async" if mode == "auto" else mode, train_gpus or gpus, of_cluster)
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


def _placed(mode: str, split: tuple[int, int], apart: bool, train: str, infer: str) -> Devices:
    chosen = ("async" if apart else "sync") if mode == "auto" else mode
    if chosen == "async" and not apart and _on_cpu(train) and _on_cpu(infer):
        from ance_cli.loop.processes import split_cpus

        return Devices(chosen, train, infer, *split_cpus(split))
    return Devices(chosen, train, infer)


def _on_cpu(gpus: str) -> bool:
    return gpus == "none" or (gpus == "all" and not num_gpus())


def _listed(gpus: list[int]) -> str:
    return ",".join(map(str, gpus)) or "none"


def num_gpus() -> int:
    """GPUs that CUDA would see, as the driver lists them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0
