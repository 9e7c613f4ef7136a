"""`ance train-segment`: train a run on one file of negatives, as the next part of what it did.

The run folder holds the identity of the run (data, start, optimizer, schedule), so that a later
segment needs only its negatives and its number of steps. This process checks, makes the run and
keeps its ledger; the training itself is `train_worker.py`, here or in a process for
each device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.call import Call
from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.config.presets import train_config
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, open_input
from ance_cli.formats.ledgers import FOLLOW, read_ledger
from ance_cli.formats.retention import check_free
from ance_cli.formats.run_folder import RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource
from ance_cli.training.launch import Nodes, launch
from ance_cli.training.run_creation import continue_run, identity_of, start_checkpoint, start_run
from ance_cli.training.segments import (
    SegmentInput,
    check_room,
    find_segment,
    new_segment,
    segment_input,
)
from ance_cli.training.train_worker import TrainJob, devices_of, train_rank
from ance_cli.training.training_set import TrainingSet

if TYPE_CHECKING:
    import torch


def train_segment(
    output: Path,
    negatives: Path | None,
    segment: SegmentConfig = SegmentConfig(),
    dataset: Dataset | None = None,
    checkpoint: Path | None = None,
    preset: str | None = None,
    given: Mapping[str, Any] | None = None,
    gpus: str = "all",
    cpu_workers: int = 1,
    nodes: Nodes = Nodes(),
    embeddings: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Train the run in `output` for `segment.steps` steps on `negatives`.

    A new run needs `dataset` (with a split) and `checkpoint`; `given` holds the `TrainConfig`
    fields that the caller set. On an existing run they may be left out, and may not differ. With
    0 steps the run is only prepared: its first checkpoint is written. An interrupted segment is
    continued from its newest state; a finished one is up to date.

    Negatives from the batch alone, or retrieved live from the `embeddings` of a frozen passage
    tower, need no file. Several devices (`gpus`, or `cpu_workers` processes) share each step.
    """
    run = RunFolder(output)
    if cpu_workers < 1:
        raise UsageProblem("--cpu-workers must be at least 1")
    if run.exists:
        identity, config = continue_run(run, dataset, checkpoint, preset, given or {})
        dataset = run.dataset()
    else:
        if dataset is None or checkpoint is None:
            raise UsageProblem(
                f"{output} is a new run: it needs --data with --split, and --ckpt",
                hint="ance train-segment NEGATIVES --data DATASET --split train --ckpt CHECKPOINT "
                "--steps N -o RUN",
            )
        config = train_config(preset, given or {})
        config = replace(config, devices=len(devices_of(gpus, cpu_workers)) * nodes.count)
        if not config.total_steps:
            if not segment.steps:
                raise UsageProblem("--steps 0 needs --total-steps: the horizon of the schedule")
            config = replace(config, total_steps=segment.steps)
        if config.warmup_steps >= config.total_steps:
            call.reporter.warn(
                f"the learning rate warms up for {config.warmup_steps} steps and the run has "
                f"{config.total_steps}: it never reaches {config.lr:g} (--warmup-steps)"
            )
        identity = identity_of(dataset, Checkpoint(checkpoint), config)
    if segment.steps:
        _check_negatives(config, segment, negatives, embeddings)
    if call.dry_run:
        return {"output": str(output), "kind": "run", "dry_run": True, "steps": segment.steps,
                **identity}  # fmt: skip
    if nodes.rank > 0:  # node 0 makes the run and keeps its ledger
        if run.exists and segment.steps:
            source = _source(run, config, segment, negatives, embeddings)
            if find_segment(run, source, segment.steps, call.force)[1]:
                return _summary(run, up_to_date=True)
        _launch(run, None, len(devices_of(gpus, cpu_workers)), nodes, call.threads)
        return _summary(run, up_to_date=False)

    with run.held("trainer"):
        made = not run.exists
        if segment.steps:
            source = _source(run, config, segment, negatives, embeddings)
            record, done = find_segment(run, source, segment.steps, call.force)
            if done and record is not None:
                call.reporter.say(
                    f"segment {record.segment} of the run was these {record.steps} steps on "
                    "the same negatives: --force trains them once more"
                )
                return _summary(run, up_to_date=True)
            if record is None:
                check_room(run, segment.steps, config)
            devices = devices_of(gpus, cpu_workers)
            _check_ranks(config, len(devices) * nodes.count)
            training_set = TrainingSet.read(dataset, config, call.skipped)
            if not segment.follow:
                stream = training_set.stream(source.path, 0)
                if config.distill and not stream.has_teacher:
                    raise BadInput(
                        f"{source.path}: no negative carries a teacher's score, which --distill "
                        f"{config.distill} learns from",
                        hint="mine with --teacher CROSS_ENCODER",
                    )
        if config.freeze_passages and segment.steps:
            newest = run.newest_checkpoint() if run.exists else None
            folder = newest[1] if newest else checkpoint
            assert folder is not None and source.path is not None
            start = Checkpoint(folder) if newest else start_checkpoint(folder, config)
            VectorSource(source.path, "embeddings").check(start, hash_file(dataset.corpus))
        if made:
            assert checkpoint is not None
            if not segment.steps:  # a run of data that is broken could not even be mended
                TrainingSet.read(dataset, config, call.skipped)
            start_run(run, dataset, Checkpoint(checkpoint), config, identity, call.reporter)
        if not segment.steps:
            return _summary(run, up_to_date=not made)
        for folder in (run.states, run.checkpoints):
            atomic.sweep(folder, "partial", "removed")
        check_free(run)
        record = record or new_segment(run, source, segment.steps)
        job = TrainJob(
            segment, record, _dtype(config, devices[0]), gpus, cpu_workers,
            call.skipped is not None, call.quiet, str(embeddings) if embeddings else None,
        )  # fmt: skip
        if len(devices) * nodes.count == 1:
            from ance_cli.training.distributed import World

            train_rank(run, config, job, World(devices[0]), training_set, call)
        else:
            _launch(run, job, len(devices), nodes, call.threads)
        atomic.append_line(run.segments, orjson.dumps({"finished": record.segment}))
        run.train_job.unlink(missing_ok=True)
        run.event("trainer", "segment finished", step=record.start_step + record.steps,
                  negatives=record.negatives)  # fmt: skip
        return _summary(run, up_to_date=False)


def _dtype(config: TrainConfig, device: torch.device) -> str:
    from ance_cli.models.devices import choose_dtype

    dtype = choose_dtype(config.dtype, device)
    return "fp32" if dtype == "fp16" else dtype


def _check_ranks(config: TrainConfig, num_ranks: int) -> None:
    """A run keeps its global batch: a later call may have more or fewer devices, which share it."""
    pairs = config.batch_size * config.devices
    if pairs % num_ranks:
        raise UsageProblem(
            f"this run trains {pairs} pairs at a time (--batch-size {config.batch_size} on "
            f"{config.devices} devices), which {num_ranks} devices cannot share evenly",
            hint="name a number of devices with --gpus that divides it",
        )


def _check_negatives(
    config: TrainConfig, segment: SegmentConfig, negatives: Path | None, embeddings: Path | None
) -> None:
    if segment.follow and (negatives is not None or config.freeze_passages):
        raise UsageProblem(
            "--follow takes the run's own generations as they are published: it goes without a "
            "file of negatives and without --freeze-passages",
            hint="leave the other out",
        )
    if config.freeze_passages and embeddings is None:
        raise UsageProblem(
            "--freeze-passages retrieves from the vectors of the frozen passages: --embeddings is "
            "missing",
            hint="ance encode --ckpt CHECKPOINT --data DATASET -o emb, then --embeddings emb",
        )
    if embeddings is not None and not config.freeze_passages:
        raise UsageProblem(
            "--embeddings is for --freeze-passages alone: otherwise passages are trained",
            hint="leave it out, or add --freeze-passages",
        )
    if config.freeze_passages and negatives is not None:
        raise UsageProblem(
            f"--freeze-passages retrieves its negatives itself, and {negatives} was named",
            hint="leave the file out",
        )
    if negatives is None and config.needs_negatives and not segment.follow:
        raise UsageProblem(
            "name the negatives to train on, or - for stdin",
            hint="or take them from the batch: --in-batch all --negatives-per-positive 0",
        )
    if negatives is not None and negatives != STDIO and not negatives.exists():
        raise BadInput(
            f"{negatives}: no such file", hint="make it with ance bm25-negatives or mine"
        )


def _source(
    run: RunFolder,
    config: TrainConfig,
    segment: SegmentConfig,
    negatives: Path | None,
    embeddings: Path | None,
) -> SegmentInput:
    """Where the segment's negatives come from, and what identifies them."""
    if segment.follow:
        return SegmentInput(None, FOLLOW, None, None)
    if config.freeze_passages:
        assert embeddings is not None
        vectors = VectorSource(embeddings, "embeddings")
        return SegmentInput(embeddings, vectors.fingerprint, None, None)
    if negatives is None:
        return SegmentInput(None, f"batch/{config.in_batch}", None, None)
    return segment_input(run, _spooled(run, negatives))


def _launch(
    run: RunFolder, job: TrainJob | None, num_ranks: int, nodes: Nodes, threads: int
) -> None:
    """Start this machine's ranks; those of other nodes find node 0's orders in the run folder."""
    if job is not None:
        atomic.write_bytes(run.train_job, job.to_json().encode())
    launch(["ance_cli.cli.train_worker", str(run.path)], num_ranks, nodes, threads)


def _spooled(run: RunFolder, negatives: Path) -> Path:
    """The negatives as a file; what comes through stdin is kept in the run folder first."""
    if negatives != STDIO:
        return negatives
    spool = run.inputs / "stdin.jsonl"
    with open_input(STDIO) as stdin, atomic.new_file(spool) as handle:
        while chunk := stdin.read(1 << 20):
            handle.write(chunk)
    kept = run.inputs / f"{hash_file(spool)}.jsonl"
    spool.replace(kept)
    return kept


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
