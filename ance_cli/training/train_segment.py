"""`ance train-segment`: train a run for some steps on one source of negatives.

The run folder holds the identity of the run (data, start, optimizer, schedule), so a later segment
needs only its negatives and its number of steps. This module checks the call, creates the run and
keeps the ledger; `train_worker.py` trains, in this process or in one process for each device.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import orjson

from ance_cli.call import Call
from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.ledgers import FOLLOW, Segment, read_ledger
from ance_cli.formats.retention import check_free
from ance_cli.formats.run_folder import RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource
from ance_cli.training.data import TrainingSet
from ance_cli.training.launch import Devices, launch
from ance_cli.training.run_creation import (
    RunSetup,
    RunSpec,
    continue_run,
    resolve_run,
    start_checkpoint,
    start_run,
)
from ance_cli.training.segments import (
    NegativesSource,
    SegmentInput,
    check_horizon,
    find_segment,
    new_segment,
)
from ance_cli.training.sizing import DataSample, Workload
from ance_cli.training.train_worker import TrainJob, train_rank


def train_segment(
    output: Path,
    negatives: Path | None,
    segment: SegmentConfig = SegmentConfig(),
    spec: RunSpec = RunSpec(),
    devices: Devices = Devices(),
    embeddings: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Train the run in `output` for `segment.steps` steps on `negatives`.

    `spec` says what a new run begins with. With 0 steps the run is only prepared: its first
    checkpoint is written. An interrupted segment continues from its newest state; a finished one is
    up to date. The `devices` share each step.

    Negatives from the batch alone, from the run's generations (`segment.follow`), or retrieved live
    from the `embeddings` of a frozen passage tower need no file.
    """
    run = RunFolder(output)
    setup = resolve_run(run, spec, segment.steps, devices, call)
    _check_optimizer(setup.config, segment)
    source = NegativesSource(negatives, segment.follow, embeddings)
    if segment.steps:
        source.check(setup.config)
    if call.dry_run:
        return _dry_run(run, setup, segment.steps, spec.preset, devices, call)
    if devices.nodes.rank > 0:  # node 0 creates the run and keeps its ledger
        return _join_node_0(run, setup.config, source, segment.steps, devices, call)
    with run.held("trainer"):
        if setup.is_new and run.exists:  # another process has created it meanwhile
            setup = continue_run(run, spec)
        if not segment.steps:
            return _prepare(run, setup, call)
        found = source.read(run, setup.config)
        record, is_done = find_segment(run, found, segment.steps, call.force)
        if record is not None and is_done:
            call.reporter.say(
                f"segment {record.segment} of the run was these {record.steps} steps on "
                "the same negatives: use --force to train them again"
            )
            return _summary(run, up_to_date=True)
        if record is None:
            check_horizon(run, segment.steps, setup.config)
        _check_sharding(segment, devices)
        training_set = _check(run, setup, found, devices, call)
        if setup.is_new:
            _start_run(run, setup, call)
        record = _begin(run, record, found, segment.steps)
        job = TrainJob.of(segment, record, setup.config, devices, embeddings, call)
        _train(run, setup.config, job, training_set, devices, call)
        _finish(run, record)
        return _summary(run, up_to_date=False)


def _check_optimizer(config: TrainConfig, segment: SegmentConfig) -> None:
    """Refuse an optimizer that cannot divide its state, or whose package is not installed."""
    if config.optimizer != "adamw-8bit":
        return
    if segment.shard == "full":
        raise UsageProblem(
            "--shard full cannot divide the moments of --optimizer adamw-8bit",
            hint="start a new run with --optimizer adamw",
        )
    if importlib.util.find_spec("torchao") is None:
        raise UsageProblem(
            "--optimizer adamw-8bit needs torchao, which is not installed",
            hint="pip install 'ance-cli[8bit]'",
        )


def _join_node_0(
    run: RunFolder,
    config: TrainConfig,
    source: NegativesSource,
    steps: int,
    devices: Devices,
    call: Call,
) -> Summary:
    """Start this machine's ranks; they read the job of node 0 from the run folder."""
    if run.exists and steps and find_segment(run, source.read(run, config), steps, call.force)[1]:
        return _summary(run, up_to_date=True)
    _launch(run, devices, call)
    return _summary(run, up_to_date=False)


def _dry_run(
    run: RunFolder, setup: RunSetup, steps: int, preset: str | None, devices: Devices, call: Call
) -> Summary:
    """What the steps would come to; loads no weights."""
    from ance_cli.training.rate import reckoned_rate

    work = _workload(run, setup, call)
    rate = reckoned_rate(devices.gpus, setup.config.dtype)
    if setup.is_new:
        work.warn(setup.config.total_steps, call.reporter)
    minutes = rate.minutes(steps * work.step_flops, devices.num_ranks)
    return {
        "output": str(run.path),
        "kind": "run",
        "dry_run": True,
        "plan": {
            **work.facts(steps),
            "preset": preset,
            "minutes": minutes,
            "based_on": rate.basis,
        },
        **setup.identity,
    }


def _workload(run: RunFolder, setup: RunSetup, call: Call) -> Workload:
    sample = setup.sample or DataSample(setup.dataset, setup.config.min_rel, call.skipped)
    return Workload(_newest_checkpoint(run, setup), setup.config, sample)


def _newest_checkpoint(run: RunFolder, setup: RunSetup) -> Checkpoint:
    """The checkpoint that training continues from; for a new run its start."""
    if not setup.is_new and (newest := run.checked_checkpoint()):
        return Checkpoint(newest[1])
    assert setup.checkpoint is not None, "a new run has a start"
    return start_checkpoint(setup.checkpoint, setup.config)


def _start_run(run: RunFolder, setup: RunSetup, call: Call) -> None:
    """Make the run folder, after a warning if the run will train too long or cut too much."""
    _workload(run, setup, call).warn(setup.config.total_steps, call.reporter)
    start_run(run, setup, call.reporter)


def _prepare(run: RunFolder, setup: RunSetup, call: Call) -> Summary:
    """Make the run folder with its first checkpoint, unless the run exists."""
    if setup.is_new:
        TrainingSet.read(setup.dataset, setup.config, call.skipped)  # refuses broken data
        _start_run(run, setup, call)
    return _summary(run, up_to_date=not setup.is_new)


def _check(
    run: RunFolder, setup: RunSetup, found: SegmentInput, devices: Devices, call: Call
) -> TrainingSet:
    """Refuse what cannot be trained before anything is written; returns the data, which is read
    for that."""
    config = setup.config
    _check_batch(config, devices.num_ranks)
    training_set = TrainingSet.read(setup.dataset, config, call.skipped)
    if found.fingerprint != FOLLOW:
        stream = training_set.stream(found.path, 0)
        if config.distill and not stream.has_teacher:
            raise BadInput(
                f"{found.path}: no negative has a teacher's score, and --distill "
                f"{config.distill} needs them",
                hint="mine with --teacher CROSS_ENCODER",
            )
    if config.freeze_passages:
        _check_frozen(run, setup, found)
    return training_set


def _check_batch(config: TrainConfig, num_ranks: int) -> None:
    """A run keeps its global batch; a later call may share it among more or fewer devices."""
    pairs = config.batch_size * config.devices
    if pairs % num_ranks:
        raise UsageProblem(
            f"this run trains {pairs} pairs at a time (--batch-size {config.batch_size} on "
            f"{config.devices} devices), which {num_ranks} devices cannot share evenly",
            hint=f"use a number of devices that divides {pairs} (--gpus, --cpu-workers)",
        )


def _check_sharding(segment: SegmentConfig, devices: Devices) -> None:
    """A sharded model is divided among several devices."""
    if segment.shard == "none":
        return
    if devices.num_ranks == 1:
        raise UsageProblem(
            "--shard full divides the model among several devices, and there is one",
            hint="omit --shard, or train on more devices (--gpus, --cpu-workers)",
        )


def _check_frozen(run: RunFolder, setup: RunSetup, found: SegmentInput) -> None:
    """The vectors must be those of the passage tower that the segment keeps frozen."""
    frozen = _newest_checkpoint(run, setup)
    assert found.path is not None, "the vectors are the input of the segment"
    vectors = VectorSource(found.path, "embeddings")
    vectors.check(frozen, hash_file(setup.dataset.corpus))
    vectors.need_floats("--freeze-passages")


def _begin(run: RunFolder, record: Segment | None, found: SegmentInput, steps: int) -> Segment:
    """The record of the segment, in the ledger before the first step; `record` if it was begun."""
    for folder in (run.states, run.checkpoints):
        atomic.sweep(folder, "partial", "removed")
    check_free(run)
    return record or new_segment(run, found, steps)


def _train(
    run: RunFolder,
    config: TrainConfig,
    job: TrainJob,
    training_set: TrainingSet,
    devices: Devices,
    call: Call,
) -> None:
    """Train to the end of the segment, in this process or in one process for each device."""
    if devices.num_ranks == 1:
        from ance_cli.training.distributed import World

        train_rank(run, config, job, World(devices.here()[0]), training_set, call)
    else:
        atomic.write_bytes(run.train_job, job.to_json().encode())
        _launch(run, devices, call)


def _launch(run: RunFolder, devices: Devices, call: Call) -> None:
    ranks = len(devices.here())
    launch(["ance_cli.cli.train_worker", str(run.path)], ranks, devices.nodes, call.threads)


def _finish(run: RunFolder, record: Segment) -> None:
    """Close the segment in the ledger."""
    atomic.append_line(run.segments, orjson.dumps({"finished": record.segment}))
    run.train_job.unlink(missing_ok=True)
    run.event("trainer", "segment finished", step=record.start_step + record.steps,
              negatives=record.negatives)  # fmt: skip


def _summary(run: RunFolder, up_to_date: bool) -> Summary:
    newest = run.newest_checkpoint()
    metrics = read_ledger(run.metrics)
    last = metrics[-1] if metrics else {}
    return {
        "output": str(run.path),
        "kind": "run",
        "up_to_date": up_to_date,
        "step": newest[0] if newest else 0,
        "checkpoint": str(run.latest),
        **{name: last[name] for name in ("loss", "steps_per_s", "tokens_per_s") if name in last},
    }
