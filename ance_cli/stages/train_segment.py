"""`ance train-segment`: train a run on one file of negatives, as the next part of what it did.

The run folder holds the identity of the run (data, start, optimizer, schedule), so that a later
segment needs only its negatives and its number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.config import SegmentConfig, TrainConfig, train_config
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.dataset import (
    Dataset,
    positives_of,
    read_corpus,
    read_qrels,
    read_queries,
)
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, Skipped, open_input
from ance_cli.formats.run_folder import (
    RunFolder,
    cut_ledger,
    read_ledger,
)
from ance_cli.formats.triples import read_negatives
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter, Silent
from ance_cli.stages.new_run import (
    continue_run,
    identity_of,
    publish_checkpoint,
    start_run,
)
from ance_cli.stages.segments import (
    SegmentInput,
    check_room,
    find_segment,
    new_segment,
    segment_input,
)
from ance_cli.stages.summary import Summary

if TYPE_CHECKING:
    import torch

    from ance_cli.models.tokens import Tokenizer, TokenRows
    from ance_cli.training.data import PairStream
    from ance_cli.training.trainer import Trainer

_TOKENIZE_CHUNK = 8192


def train_segment(
    output: Path,
    negatives: Path | None,
    segment: SegmentConfig = SegmentConfig(),
    dataset: Dataset | None = None,
    checkpoint: Path | None = None,
    preset: str | None = None,
    given: Mapping[str, Any] | None = None,
    gpus: str = "all",
    force: bool = False,
    dry_run: bool = False,
    skipped: Skipped | None = None,
    reporter: Reporter = Silent(),
) -> Summary:
    """Train the run in `output` for `segment.steps` steps on `negatives`.

    A new run needs `dataset` (with a split) and `checkpoint`; `given` holds the `TrainConfig`
    fields that the caller set. On an existing run they may be left out, and may not differ. With
    0 steps the run is only prepared: its first checkpoint is written. An interrupted segment is
    continued from its newest state; a finished one is up to date.
    """
    run = RunFolder(output)
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
        if not config.total_steps:
            if not segment.steps:
                raise UsageProblem("--steps 0 needs --total-steps: the horizon of the schedule")
            config = replace(config, total_steps=segment.steps)
        identity = identity_of(dataset, Checkpoint(checkpoint), config)
    if negatives is None and segment.steps:
        raise UsageProblem("name the negatives to train on, or - for stdin")
    if negatives is not None and negatives != STDIO and not negatives.exists():
        raise BadInput(
            f"{negatives}: no such file", hint="make it with ance bm25-negatives or mine"
        )
    if dry_run:
        return {"output": str(output), "kind": "run", "dry_run": True, "steps": segment.steps,
                **identity}  # fmt: skip

    with run.held("trainer"):
        made = not run.exists
        if segment.steps:
            assert negatives is not None
            source = segment_input(run, _spooled(run, negatives))
            record, done = find_segment(run, source, segment.steps, force)
            if done:
                return _summary(run, up_to_date=True)
            if record is None:
                check_room(run, segment.steps, config)
            device, dtype = _device(gpus, config, reporter)
            stream = _stream(dataset, config, source, skipped)
        if made:
            assert checkpoint is not None
            start_run(run, dataset, Checkpoint(checkpoint), config, identity, reporter)
        if not segment.steps:
            return _summary(run, up_to_date=not made)
        record = record or new_segment(run, source, segment.steps)
        trainer = _make_trainer(
            run, dataset, config, segment, record, source, stream, device, dtype, skipped, reporter
        )
        trainer.run(reporter, int(record["start_step"]))
        atomic.append_line(run.segments, orjson.dumps({"finished": record["segment"]}))
        run.event("trainer", "segment finished", step=trainer.step, negatives=str(source.path))
        return _summary(run, up_to_date=False)


def _device(gpus: str, config: TrainConfig, reporter: Reporter) -> tuple[torch.device, str]:
    """The one device that trains, and its number format."""
    from ance_cli.models.devices import choose_devices, choose_dtype

    devices = choose_devices(gpus)
    if len(devices) > 1:
        if gpus != "all":
            raise UsageProblem(
                f"--gpus {gpus}: training uses one device so far",
                hint=f"use --gpus {devices[0].index}",
            )
        reporter.warn(f"training uses one device so far: {devices[0]} of {len(devices)}")
    dtype = choose_dtype(config.dtype, devices[0])
    return devices[0], "fp32" if dtype == "fp16" else dtype


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


def _make_trainer(
    run: RunFolder,
    dataset: Dataset,
    config: TrainConfig,
    segment: SegmentConfig,
    record: dict[str, Any],
    source: SegmentInput,
    stream: PairStream,
    device: torch.device,
    dtype: str,
    skipped: Skipped | None,
    reporter: Reporter,
) -> Trainer:
    """The trainer, standing at the newest state."""
    from ance_cli.models.encoder import load_encoder, set_dropout
    from ance_cli.models.tokens import Tokenizer
    from ance_cli.training.optim import make_optimizer
    from ance_cli.training.state import Standing, load_state, save_state
    from ance_cli.training.trainer import Trainer

    if stream.num_skipped:
        reporter.warn(
            f"{stream.num_skipped} of {len(stream.pairs)} pairs have too few negatives "
            "and are skipped"
        )
    newest = run.newest_checkpoint()
    if newest is None:
        raise BadInput(f"{run.checkpoints}: there is no whole checkpoint in the run")
    start = Checkpoint(newest[1])
    tokenizer = Tokenizer(start)
    encoder = load_encoder(start).to(device)
    if config.dropout is not None:
        set_dropout(encoder, config.dropout)
    optimizer = make_optimizer(encoder, config.optimizer, config.lr, config.weight_decay)
    standing = Standing()
    if state := run.newest_state():
        standing = load_state(state[1], encoder, optimizer)
    if standing.dtype not in ("", dtype):
        reporter.warn(
            f"this run computed in {standing.dtype} so far and goes on in {dtype}: its losses are "
            f"not those of an uninterrupted run (use --dtype {standing.dtype} for that)"
        )
    cut_ledger(run.metrics, standing.step)
    if source.generation is not None and standing.step == record["start_step"]:
        switch = {"step": standing.step, "generation": source.generation}
        if switch not in read_ledger(run.switches):
            atomic.append_line(run.switches, orjson.dumps(switch))

    def keep_state(trainer: Trainer) -> None:
        folder = run.state_at(trainer.step)
        save_state(folder, trainer.encoder, trainer.optimizer, trainer.standing)
        run.prune_states()

    def keep_checkpoint(trainer: Trainer) -> None:
        pins = replace(start.pins, training_step=trainer.step)
        publish_checkpoint(run, trainer.encoder, tokenizer, pins)

    def log(record: dict[str, Any]) -> None:
        atomic.append_line(run.metrics, orjson.dumps(record))

    queries = read_queries(dataset.need("queries"), skipped)
    return Trainer(
        encoder=encoder,
        optimizer=optimizer,
        stream=stream,
        queries=tokenizer([queries[name] for name in stream.query_ids], "query"),
        passages=_passage_rows(dataset, tokenizer, stream.doc_ids, skipped, reporter),
        pad_id=tokenizer.pad_id,
        config=config,
        segment=segment,
        scale=start.pins.scale,
        dtype=dtype,
        device=device,
        step=standing.step,
        at=standing.stream,
        losses=standing.losses,
        last_step=record["start_step"] + record["steps"],
        save_state=keep_state,
        save_checkpoint=keep_checkpoint,
        log=log,
        facts={
            "segment": record["segment"],
            "generation": record["generation"],
            "negatives_step": record["checkpoint_step"],
        },
    )


def _stream(
    dataset: Dataset, config: TrainConfig, source: SegmentInput, skipped: Skipped | None
) -> PairStream:
    from ance_cli.training.data import PairStream

    queries = read_queries(dataset.need("queries"), skipped)
    corpus_order = {
        passage.doc_id: place for place, passage in enumerate(read_corpus(dataset.corpus, skipped))
    }
    qrels = read_qrels(dataset.need("qrels"), queries, corpus_order, skipped)
    positives = positives_of(qrels, config.min_rel)
    pairs = [(query_id, doc_id) for query_id, docs in positives.items() for doc_id in docs]
    negatives = read_negatives(source.path, queries, corpus_order, positives, skipped)
    return PairStream(
        pairs, negatives, corpus_order, config.seed, source.checkpoint_step,
        config.negatives_per_positive,
    )  # fmt: skip


def _passage_rows(
    dataset: Dataset,
    tokenizer: Tokenizer,
    doc_ids: list[str],
    skipped: Skipped | None,
    reporter: Reporter,
) -> TokenRows:
    """Token rows of the documents that occur, in corpus order, tokenised chunk by chunk."""
    from ance_cli.models.tokens import join_rows

    wanted = set(doc_ids)
    separator = tokenizer.pins.separator
    texts: Iterator[str] = (
        passage.joined(separator)
        for passage in read_corpus(dataset.corpus, skipped)
        if passage.doc_id in wanted
    )
    parts = []
    with reporter.task("tokenising", len(doc_ids), "passage") as bar:
        while chunk := list(islice(texts, _TOKENIZE_CHUNK)):
            parts.append(tokenizer(chunk, "passage"))
            bar.advance(len(chunk))
    return join_rows(parts)


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
