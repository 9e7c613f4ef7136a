"""What every rank of a training segment does: load the newest state, train, keep what is made.

All ranks read; rank 0 writes.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import BadInput, Diverged, Stopped
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import (
    Dataset,
)
from ance_cli.formats.jsonl import Skipped
from ance_cli.formats.run_folder import RunFolder, cut_ledger
from ance_cli.mining.filtering import Territories
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.training.run_creation import config_of, publish_checkpoint
from ance_cli.training.run_generations import follow_run
from ance_cli.training.segments import FOLLOW, SegmentInput, state_step
from ance_cli.training.training_set import Labels

if TYPE_CHECKING:
    import torch

    from ance_cli.models.tokens import TokenRows
    from ance_cli.training.data import PairStream
    from ance_cli.training.distributed import World
    from ance_cli.training.live import LiveNegatives
    from ance_cli.training.state import Standing
    from ance_cli.training.trainer import Trainer


@dataclass(frozen=True)
class Orders:
    """What a rank is told; everything else lies in the run folder.

    `record` is the segment's line in `segments.jsonl`; `embeddings` holds the vectors of a frozen
    passage tower.
    """

    segment: SegmentConfig
    record: dict[str, Any]
    dtype: str
    gpus: str = "all"
    cpu_workers: int = 1
    skip_bad: bool = False
    quiet: bool = False
    embeddings: str | None = None

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Orders:
        found = orjson.loads(text)
        return cls(**{**found, "segment": SegmentConfig(**found["segment"])})


def devices_of(gpus: str, cpu_workers: int) -> list[torch.device]:
    """One device for each rank of this machine: GPUs, or the CPU `cpu_workers` times."""
    from ance_cli.models.devices import choose_devices

    devices = choose_devices(gpus)
    return devices * cpu_workers if devices[0].type == "cpu" else devices


def join_segment(run: RunFolder, reporter_of: Callable[[bool, bool], Reporter]) -> None:
    """One rank's whole life: read the orders in the run folder, join the others, train.

    `reporter_of(is_main, quiet)` makes the rank's reporter.
    """
    from ance_cli.training.distributed import join_world

    orders = Orders.from_json(run.orders.read_text(encoding="utf-8"))
    world = join_world(devices_of(orders.gpus, orders.cpu_workers))
    reporter = reporter_of(world.is_main, orders.quiet)
    skipped = Skipped() if orders.skip_bad else None
    try:
        train_rank(run, config_of(run.read()["identity"]), orders, world, skipped, reporter)
    except Diverged as problem:
        if world.is_main:
            raise
        sys.exit(problem.exit_code)  # every rank saw it; one says it
    except Stopped as stop:
        sys.exit(stop.exit_code)  # the process that started the ranks says it


def train_rank(
    run: RunFolder,
    config: TrainConfig,
    orders: Orders,
    world: World,
    skipped: Skipped | None,
    reporter: Reporter,
    labels: Labels | None = None,
) -> None:
    """Train one rank's part of a segment to its end; `labels`, if they were read already."""
    labels = labels or Labels.read(run.dataset(), config, skipped)
    vectors = Path(orders.embeddings) if orders.embeddings else None
    with world.losing_peers(), lease.reading(vectors) if vectors else nullcontext():
        trainer = _make_trainer(run, config, orders, world, labels, skipped, reporter)
        try:
            trainer.run(reporter, int(orders.record["start_step"]))
        except Diverged as problem:
            if world.is_main:
                run.event("trainer", "diverged", step=trainer.step, reason=problem.what)
            raise
        if trainer.step < trainer.last_step:  # another rank was told to stop
            raise Stopped(signal.SIGTERM)
        world.close()


def _make_trainer(
    run: RunFolder,
    config: TrainConfig,
    orders: Orders,
    world: World,
    labels: Labels,
    skipped: Skipped | None,
    reporter: Reporter,
) -> Trainer:
    """The trainer, standing at the newest state."""
    from ance_cli.models.attention import use_float32
    from ance_cli.models.dual import enable_gradient_checkpointing, load_dual
    from ance_cli.models.encoder import set_dropout
    from ance_cli.models.flops import matmul_ceiling
    from ance_cli.models.tokens import Tokenizer
    from ance_cli.training.generation_watcher import Lesson
    from ance_cli.training.optim import make_optimizer
    from ance_cli.training.state import Standing, load_state, save_state
    from ance_cli.training.trackers import make_tracker
    from ance_cli.training.trainer import Trainer

    dataset, segment = run.dataset(), orders.segment
    newest = run.newest_checkpoint()
    if newest is None:
        raise BadInput(f"{run.checkpoints}: there is no whole checkpoint in the run")
    start = Checkpoint(newest[1])
    tokenizer = Tokenizer(start)
    encoder = load_dual(start).to(world.device)
    if world.device.type == "cpu":
        for tower in (encoder.query, encoder.passage):
            use_float32(tower.backbone)
    if config.freeze_passages:
        encoder.passage.requires_grad_(False)
    if segment.gradient_checkpointing:
        enable_gradient_checkpointing(encoder)
    if config.dropout is not None:
        set_dropout(encoder, config.dropout)
    optimizer = make_optimizer(encoder, config.optimizer, config.lr, config.weight_decay)
    standing = Standing()
    state_step(run)  # refuses a checkpoint that is newer than the state
    if state := run.newest_state():
        standing = load_state(state[1], encoder, optimizer)
    _check_dtype(standing, orders, reporter)
    logged = run.last_logged_step()  # by the call that was interrupted
    world.total()  # every rank has read it before it is cut back
    if world.is_main:
        cut_ledger(run.metrics, standing.step)

    def make_lesson(source: SegmentInput) -> Lesson:
        stream = labels.stream(source.path, source.checkpoint_step or 0)
        doc_ids = [] if config.freeze_passages else stream.doc_ids
        passages = _passage_rows(start, dataset, doc_ids, skipped, reporter)
        return Lesson(stream, passages, source.generation, source.checkpoint_step)

    follower = None
    if orders.record["input"] == FOLLOW:
        follower, lesson = follow_run(run, standing.step, logged, make_lesson, world, reporter)
    else:
        lesson = make_lesson(SegmentInput.of(run, orders.record))
    if lesson.stream.num_skipped:
        reporter.warn(
            f"{lesson.stream.num_skipped} of {len(lesson.stream.pairs)} pairs have too few "
            "negatives and are skipped"
        )
    track = make_tracker(
        segment.track if world.is_main else None, run.path, run.path.name, asdict(config)
    )

    def note_switch(trainer: Trainer) -> None:
        run.note_switch(trainer.step, trainer.lesson.generation)

    def keep_state(trainer: Trainer) -> None:
        folder = run.state_at(trainer.step)
        save_state(folder, trainer.encoder, trainer.optimizer, trainer.standing)
        run.prune_states()

    def keep_checkpoint(trainer: Trainer) -> None:
        pins = replace(start.pins, training_step=trainer.step)
        frozen = start if config.freeze_passages else None
        publish_checkpoint(run, trainer.encoder, tokenizer, pins, frozen)

    def log(line: dict[str, Any]) -> None:
        atomic.append_line(run.metrics, orjson.dumps(line))
        track(line)

    trainer = Trainer(
        encoder=encoder,
        optimizer=optimizer,
        lesson=lesson,
        queries=tokenizer([labels.queries[name] for name in lesson.stream.query_ids], "query"),
        pads=(tokenizer.pad_id_of("query"), tokenizer.pad_id_of("passage")),
        config=config,
        segment=segment,
        scale=start.pins.scale,
        dtype=orders.dtype,
        world=world,
        step=standing.step,
        at=standing.stream,
        losses=standing.losses,
        last_step=orders.record["start_step"] + orders.record["steps"],
        save_state=keep_state,
        save_checkpoint=keep_checkpoint,
        log=log,
        switched=note_switch,
        follower=follower,
        live=_live(config, orders, labels, lesson.stream, world),
        ceiling=matmul_ceiling(world.device, orders.dtype),
        facts={"segment": orders.record["segment"]},
    )
    if world.is_main:
        note_switch(trainer)
    return trainer


def _check_dtype(standing: Standing, orders: Orders, reporter: Reporter) -> None:
    if standing.dtype not in ("", orders.dtype):
        reporter.warn(
            f"this run computed in {standing.dtype} so far and goes on in {orders.dtype}: its "
            "losses are not those of an uninterrupted run "
            f"(use --dtype {standing.dtype} for that)"
        )


def _live(
    config: TrainConfig, orders: Orders, labels: Labels, stream: PairStream, world: World
) -> LiveNegatives | None:
    """Live retrieval for a frozen passage tower, from vectors that this very tower made."""
    if not config.freeze_passages:
        return None
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.training.live import LiveNegatives

    assert orders.embeddings is not None
    embeddings = Embeddings(Path(orders.embeddings))
    territories = Territories(embeddings.ids, list(labels.shares)) if labels.shares else None
    return LiveNegatives(
        embeddings, world.device, stream.known, config.live_depth, config.negatives_per_positive,
        config.seed, territories,
    )  # fmt: skip


def _passage_rows(
    start: Checkpoint,
    dataset: Dataset,
    doc_ids: list[str],
    skipped: Skipped | None,
    reporter: Reporter,
) -> TokenRows:
    """Token rows of the documents that occur, in corpus order, from the corpus's token cache."""
    from ance_cli.encoding.tokenize import corpus_tokens
    from ance_cli.formats.tokens import join_rows

    if not doc_ids:
        return join_rows([])
    return corpus_tokens(start, dataset, None, skipped, reporter).rows_of(set(doc_ids))
