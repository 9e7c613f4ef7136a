"""Part 4: the rate of training against a bare torch loop, and whether every way to the same step
gives the same losses."""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import torch

from ance_cli.call import Call
from ance_cli.config import EncodeConfig, SegmentConfig
from ance_cli.encoding.encode import encode
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Silent
from ance_cli.training.launch import Devices
from ance_cli.training.run_creation import RunSpec
from ance_cli.training.train_segment import train_segment
from benchmarks import train as bare_loop
from benchmarks.gpu_trial.attention import padded, with_cudnn
from benchmarks.gpu_trial.parts import DIFFERENCE
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.profiling import Profile, Profiler
from benchmarks.gpu_trial.trial import Trial, ance_command

_CHUNK = 3
"""Rows that gradient caching encodes at a time: a batch is no multiple of it."""
_POLL_SECONDS = 0.02
_WAIT_SECONDS = 300.0
_PROFILED = 5
"""Steps."""


def run(trial: Trial) -> None:
    _main_rate(trial)
    _agreement(trial)
    _interrupted(trial)
    _frozen(trial)
    if trial.cuda:
        name = "adamw, dropout 0.1, with cuDNN attention"
        with trial.arm(name), with_cudnn():
            trial.record(name, _rate(trial, "adamw", 0.1)["tokens_per_s"])
        name = "adamw, dropout 0, padded"
        with trial.arm(name), padded():
            trial.record(name, _rate(trial, "adamw", 0.0)["tokens_per_s"])
    for optimizer, dropout in (("adamw", 0.0), ("lamb", 0.0), ("lamb", 0.1)):
        name = f"{optimizer}, dropout {dropout:g}"
        with trial.arm(name):
            line = _rate(trial, optimizer, dropout)
            trial.record(name, line["tokens_per_s"], line=line)
    if trial.cuda:
        _beyond_memory(trial)


# ---------------------------------------------------------------- segments


@dataclass(frozen=True)
class Segment:
    """A call of `train-segment` on the docstrings and their BM25 negatives."""

    trial: Trial
    folder: Path
    given: dict[str, Any]
    steps: int
    log_every: int = 1
    gpus: str | None = None
    grad_cache: int = 0
    gradient_checkpointing: bool = False
    force: bool = False
    embeddings: Path | None = None

    def __call__(self, checkpoint: Path, reporter: Silent | None = None) -> list[dict[str, Any]]:
        """Train, and return the lines of the run's log."""
        inputs = Inputs(self.trial.work)
        train_segment(
            self.folder,
            None if self.embeddings else inputs.negatives,
            SegmentConfig(
                steps=self.steps, log_every=self.log_every, grad_cache=self.grad_cache,
                gradient_checkpointing=self.gradient_checkpointing,
            ),
            RunSpec(inputs.train(), checkpoint, given=self.given),
            Devices(self.gpus or self.trial.gpus),
            self.embeddings,
            Call(reporter=reporter or Silent(), force=self.force),
        )  # fmt: skip
        return log_of(self.folder)


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none if there is no log yet, and no line that is half written."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [orjson.loads(line) for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]


# ---------------------------------------------------------------- rates


class _Watch(Silent):
    """Profiles the steps from `first` on."""

    def __init__(self, first: int) -> None:
        self.steps, self._first = 0, first
        self._profiler = Profiler()
        self.profile: Profile | None = None

    def advance(self, amount: int = 1) -> None:
        self.steps += amount
        if self.steps == self._first:
            self._profiler.start()
        elif self.steps == self._first + _PROFILED:
            self.profile = self._profiler.stop()

    def describe(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
        if name == "training":
            yield self
        else:
            with super().task(name, total, unit, done) as bar:
                yield bar


def _rate(
    trial: Trial, optimizer: str, dropout: float, reporter: Silent | None = None
) -> dict[str, Any]:
    """The log's line of the second half of the steps."""
    folder = trial.scratch(f"{optimizer}-{dropout:g}")
    shutil.rmtree(folder, ignore_errors=True)
    given = {"optimizer": optimizer, "dropout": dropout, "batch_size": trial.sizes.batch,
             "schedule": "constant"}  # fmt: skip
    segment = Segment(trial, folder, given, trial.sizes.steps, log_every=trial.sizes.half)
    line = segment(Inputs(trial.work).base, reporter)[-1]
    shutil.rmtree(folder)  # a state of BERT-base has more than a gigabyte
    return line


def _main_rate(trial: Trial) -> None:
    """The default optimizer with BERT's dropout: rate, memory, profile, and the bare loop."""
    name = "adamw, dropout 0.1"
    with trial.arm(name, "steps", "MFU", "peak memory"):
        if trial.cuda:
            torch.cuda.reset_peak_memory_stats(trial.device)
        line = _rate(trial, "adamw", 0.1)
        trial.record(name, line["tokens_per_s"], line=line)
        trial.record("steps", line["steps_per_s"])
        trial.record("MFU", 100 * line["mfu"])
        if trial.cuda:
            peak = torch.cuda.max_memory_allocated(trial.device) >> 20
            trial.record("peak memory", peak)
    name = f"bare loop, {name}"
    with trial.arm(name):
        trial.record(name, _bare(trial))
    if trial.cuda:
        with trial.arm("GPU busy", "waits for the GPU in a step"):
            watch = _Watch(trial.sizes.half)
            _rate(trial, "adamw", 0.1, watch)
            assert watch.profile is not None, "more steps are trained than are profiled"
            busy, kernels = watch.profile.busy_percent, watch.profile.top()
            trial.record("GPU busy", busy, kernels=kernels)
            trial.record("waits for the GPU in a step", watch.profile.waits / _PROFILED,
                         wait_ms=watch.profile.wait_ms / _PROFILED)  # fmt: skip


def _bare(trial: Trial) -> float:
    """Tokens a second of benchmarks/train.py's loop, in the number format that ance trains in."""
    from ance_cli.models.devices import choose_dtype

    inputs, sizes = Inputs(trial.work), trial.sizes
    options = argparse.Namespace(
        ckpt=inputs.base, batch_size=sizes.batch, steps=sizes.half, dropout=0.1,
        query_length=sizes.query_length, passage_length=sizes.passage_length,
    )  # fmt: skip
    dtype = choose_dtype("auto", trial.device)
    return bare_loop.bare(inputs.negatives, inputs.docstrings, dtype, options).tokens


# ---------------------------------------------------------------- agreement


def _agreement(trial: Trial) -> None:
    """Losses of a few steps of the smaller encoder in float32 without dropout."""
    small, steps = Inputs(trial.work).small, trial.sizes.compared_steps
    plain = Segment(trial, trial.scratch("plain"), _compared(trial), steps)
    arms: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "--grad-cache and all at once": lambda: _again(plain, "cache", grad_cache=_CHUNK)(small),
        "--gradient-checkpointing and not": lambda: _again(
            plain, "recomputed", gradient_checkpointing=True
        )(small),
        "two segments and one": lambda: _in_two(plain, small),
    }
    if trial.cuda:
        arms["GPU and CPU, fp32"] = lambda: _again(plain, "cpu", gpus="none")(small)
    with trial.arm(*(f"{DIFFERENCE}{name}" for name in arms)):
        expected = plain(small)
        for name, train in arms.items():
            with trial.arm(f"{DIFFERENCE}{name}"):
                trial.record(f"{DIFFERENCE}{name}", largest_difference(train(), expected))


def _compared(trial: Trial) -> dict[str, Any]:
    return {"dtype": "fp32", "dropout": 0.0, "batch_size": trial.sizes.compared_batch,
            "schedule": "constant"}  # fmt: skip


def _again(segment: Segment, folder: str, **changes: Any) -> Segment:
    """The same segment in another run."""
    return replace(segment, folder=segment.folder.with_name(folder), **changes)


def _in_two(plain: Segment, checkpoint: Path) -> list[dict[str, Any]]:
    """The same steps in two segments; the second resumes from the state of the first."""
    half = replace(_again(plain, "two"), steps=plain.steps // 2)
    half(checkpoint)
    return replace(half, steps=plain.steps - half.steps, force=True)(checkpoint)


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Between the losses of two logs, and between their gradient norms as a share of the norm;
    infinite if the logs do not have the same steps."""
    if [line["step"] for line in one] != [line["step"] for line in other] or not one:
        return math.inf
    pairs = list(zip(one, other, strict=True))
    losses = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    norms = max(abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"] for a, b in pairs)
    return float(max(losses, norms))


# ---------------------------------------------------------------- interruptions


def _interrupted(trial: Trial) -> None:
    """A command that is stopped, repeated, killed and repeated, against one that is left alone."""
    once = "stopped, killed and repeated: each step is logged once"
    same = f"{DIFFERENCE}stopped, killed and repeated, and not"
    with trial.arm(once, same):
        inputs = Inputs(trial.work)
        stop_at, kill_at, steps = trial.sizes.killed_steps
        segment = Segment(trial, trial.scratch("whole"), _compared(trial), steps)
        expected = segment(inputs.small)
        run = trial.scratch("interrupted")
        words = [
            "train-segment", inputs.negatives, "--data", inputs.docstrings, "--ckpt", inputs.small,
            "-o", run, "--steps", steps, "--checkpoint-every", max(1, stop_at // 2),
            "--log-every", 1, "--gpus", trial.gpus, "--quiet",
        ]  # fmt: skip
        for name, value in _compared(trial).items():
            words += [f"--{name.replace('_', '-')}", value]
        for signum, step in ((signal.SIGTERM, stop_at), (signal.SIGKILL, kill_at)):
            if not _signal_at(ance_command(*words), run, signum, step):
                raise RuntimeError(f"the command ended before step {step} could be interrupted")
        trial.ance(*words)
        found = log_of(run)
        logged = [line["step"] for line in found]
        trial.record(once, logged == list(range(1, steps + 1)))
        trial.record(same, largest_difference(found, expected))


def _signal_at(command: list[str], run: Path, signum: int, step: int) -> bool:
    """Send a signal when the log has reached a step; whether the command was still running."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    end = time.monotonic() + _WAIT_SECONDS
    try:
        while child.poll() is None and time.monotonic() < end:
            lines = log_of(run)
            if lines and lines[-1]["step"] >= step:
                child.send_signal(signum)
                return child.wait() != 0
            time.sleep(_POLL_SECONDS)
        return False
    finally:
        child.kill()
        child.wait()


# ---------------------------------------------------------------- what else a step can be


def _frozen(trial: Trial) -> None:
    """The query encoder alone, on negatives that each step retrieves from vectors on the device."""
    name = "--freeze-passages trains on live negatives"
    with trial.arm(name):
        inputs = Inputs(trial.work)
        vectors = trial.scratch("frozen-vectors")
        encode(Checkpoint(inputs.small), inputs.train(), vectors, EncodeConfig(gpus=trial.gpus))
        given = {**_compared(trial), "freeze_passages": True}
        segment = Segment(trial, trial.scratch("frozen"), given, 5, embeddings=vectors)
        losses = [line["loss"] for line in segment(inputs.small)]
        ok = len(losses) == 5 and all(math.isfinite(loss) and loss > 0 for loss in losses)
        trial.record(name, ok, losses=losses)


def _beyond_memory(trial: Trial) -> None:
    """A batch that does not fit ends with the exit code for that, and says what to do."""
    name = "a batch beyond memory: exit code 5 and a hint"
    with trial.arm(name):
        inputs = Inputs(trial.work)
        done = trial.ance(
            "train-segment", inputs.negatives, "--data", inputs.docstrings, "--ckpt", inputs.base,
            "-o", trial.scratch("too-large"), "--steps", 2, "--batch-size", trial.sizes.too_large,
            "--gpus", trial.gpus, "--quiet", expect=None,
        )  # fmt: skip
        trial.record(name, done.code == 5 and "--" in done.output, code=done.code,
                     said=done.output[-500:])  # fmt: skip
