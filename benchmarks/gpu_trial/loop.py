"""Part 5: the whole loop on one device, in turns and at the same time."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ance_cli.formats.manifest import read_manifest
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.train import log_of
from benchmarks.gpu_trial.trial import Trial

_POLL_SECONDS = 0.1


def run(trial: Trial) -> None:
    for mode in ("sync", *(["async"] if trial.cuda else [])):
        with trial.arm(*(name for name in trial.numbers if name.startswith(f"{mode}: "))):
            _loop(trial, mode)


def _loop(trial: Trial, mode: str) -> None:
    inputs, sizes = Inputs(trial.work), trial.sizes
    folder = trial.scratch(mode)
    with _memory(trial) as memory:
        done = trial.ance(
            "loop", "--data", inputs.docstrings, "--ckpt", inputs.small, "-o", folder,
            "--mode", mode, "--refresh-every", sizes.segment_steps, "--segments", sizes.segments,
            "--batch-size", sizes.batch, "--depth", sizes.mined_depth,
            "--negatives", sizes.mined_depth // 2, "--log-every", max(1, sizes.segment_steps // 2),
            "--gpus", trial.gpus, "--quiet", expect=None,
        )  # fmt: skip
    trial.record(f"{mode}: ends with exit code 0", done.code == 0, code=done.code)
    trial.record(f"{mode}: whole loop", done.seconds)
    generations = [path for path in sorted(folder.glob("generations/[0-9]*")) if path.is_dir()]
    trial.record(f"{mode}: generations", len(generations))
    stages = [_seconds(path) for path in generations]
    refreshes = [each["all"] for each in stages]
    trial.record(f"{mode}: stages of a refresh", statistics.mean(refreshes), each=stages)
    log = log_of(folder)
    trial.record(f"{mode}: training", statistics.median(line["steps_per_s"] for line in log))
    steps = sum(b["step"] - a for a, b in zip([0, *(x["step"] for x in log)], log, strict=False))
    trained = steps / statistics.mean(line["steps_per_s"] for line in log)
    rest = done.seconds - sum(refreshes) - trained
    trial.record(f"{mode}: outside of refreshes and steps", rest)
    if trial.cuda:
        trial.record(f"{mode}: memory in use on the GPU", max(memory) >> 20)


def _seconds(generation: Path) -> dict[str, float]:
    """The seconds of each stage of a refresh, as the generation's manifest has them."""
    found: dict[str, float] = read_manifest(generation, "generation")["stats"]["seconds"]
    return found


@contextmanager
def _memory(trial: Trial) -> Iterator[list[int]]:
    """Bytes in use on the device by other processes, read again and again in this block."""
    found: list[int] = []
    if not trial.cuda:
        yield found
        return
    before = _used(trial)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            found.append(_used(trial) - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _used(trial: Trial) -> int:
    free, total = torch.cuda.mem_get_info(trial.device)
    return int(total - free)
