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

from ance_cli.call import Call, SkippedLines
from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import BadInput, Diverged, Stopped
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import (
    Dataset,
)
from ance_cli.formats.ledgers import FOLLOW, Segment, cut_ledger
from ance_cli.formats.records import parse_record
from ance_cli.formats.run_folder import RunFolder
from ance_cli.mining.filtering import DatasetScope
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.training.launch import Devices
from ance_cli.training.run_creation import config_of, publish_checkpoint
from ance_cli.training.run_generations import watch_generations
from ance_cli.training.segments import SegmentInput, state_step
from ance_cli.training.training_set import TrainingSet

if TYPE_CHECKING:
    from ance_cli.models.tokens import TokenRows
    from ance_cli.training.data import PairStream
    from ance_cli.training.distributed import World
    from ance_cli.training.live import LiveNegatives
    from ance_cli.training.state import TrainerState
    from ance_cli.training.trainer import Trainer


@dataclass(frozen=True)
class TrainJob:
    """What a rank must know about a segment in addition to what the run folder holds.

    `record` is the segment's line in `segments.jsonl`; `embeddings` holds the vectors of a frozen
    passage tower.
    """

    segment: SegmentConfig
    record: Segment
    dtype: str
    gpus: str = "all"
    cpu_workers: int = 1
    skip_bad: bool = False
    quiet: bool = False
    embeddings: str | None = None

    @classmethod
    def of(
        cls,
        segment: SegmentConfig,
        record: Segment,
        config: TrainConfig,
        devices: Devices,
        embeddings: Path | None,
        call: Call,
    ) -> TrainJob:
        """The job of a call; all ranks compute in the number format that fits node 0's devices."""
        from ance_cli.models.devices import choose_dtype

        dtype = choose_dtype(config.dtype, devices.here()[0])
        return cls(
            segment,
            record,
            dtype="fp32" if dtype == "fp16" else dtype,
            gpus=devices.gpus,
            cpu_workers=devices.cpu_workers,
            skip_bad=call.skipped is not None,
            quiet=call.quiet,
            embeddings=str(embeddings) if embeddings else None,
        )

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> TrainJob:
        return parse_record(text.encode(), cls, "the training job")


def join_segment(run: RunFolder, reporter_of: Callable[[bool, bool], Reporter]) -> None:
    """One rank's whole life: read the orders in the run folder, join the others, train.

    `reporter_of(is_main, quiet)` makes the rank's reporter.
    """
    from ance_cli.training.distributed import join_world

    job = TrainJob.from_json(run.train_job.read_text(encoding="utf-8"))
    world = join_world(Devices(job.gpus, job.cpu_workers).here())
    call = Call(
        reporter=reporter_of(world.is_main, job.quiet),
        skipped=SkippedLines() if job.skip_bad else None,
        quiet=job.quiet,
    )
    try:
        train_rank(run, config_of(run.read().identity), job, world, call=call)
    except Diverged as problem:
        if world.is_main:
            raise
        sys.exit(problem.exit_code)  # every rank saw it; one says it
    except Stopped as stop:
        sys.exit(stop.exit_code)  # the process that started the ranks says it


def train_rank(
    run: RunFolder,
    config: TrainConfig,
    job: TrainJob,
    world: World,
    training_set: TrainingSet | None = None,
    call: Call = Call(),
) -> None:
    """Train one rank's part of a segment to its end; `training_set`, if they were read already."""
    training_set = training_set or TrainingSet.read(run.dataset(), config, call.skipped)
    vectors = Path(job.embeddings) if job.embeddings else None
    with world.losing_peers(), lease.reading(vectors) if vectors else nullcontext():
        trainer = _make_trainer(run, config, job, world, training_set, call)
        try:
            trainer.run(call.reporter, job.record.start_step)
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
    job: TrainJob,
    world: World,
    training_set: TrainingSet,
    call: Call,
) -> Trainer:
    """The trainer, standing at the newest state."""
    from ance_cli.models.attention import use_float32
    from ance_cli.models.dual import enable_gradient_checkpointing, load_dual
    from ance_cli.models.encoder import set_dropout
    from ance_cli.models.flops import matmul_ceiling
    from ance_cli.models.tokens import Tokenizer
    from ance_cli.training.generation_watcher import NegativesSnapshot
    from ance_cli.training.optim import make_optimizer
    from ance_cli.training.state import TrainerState, load_state, save_state
    from ance_cli.training.trackers import make_tracker
    from ance_cli.training.trainer import Trainer

    dataset, segment = run.dataset(), job.segment
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
    trainer_state = TrainerState()
    state_step(run)  # refuses a checkpoint that is newer than the state
    if state := run.newest_state():
        trainer_state = load_state(state[1], encoder, optimizer)
    _check_dtype(trainer_state, job, call.reporter)
    logged = run.last_logged_step()  # by the call that was interrupted
    world.all_reduce_sum()  # every rank has read it before it is cut back
    if world.is_main:
        cut_ledger(run.metrics, trainer_state.step)

    def load_snapshot(source: SegmentInput) -> NegativesSnapshot:
        stream = training_set.stream(source.path, source.checkpoint_step or 0)
        doc_ids = [] if config.freeze_passages else stream.doc_ids
        passages = _passage_rows(start, dataset, doc_ids, call)
        return NegativesSnapshot(stream, passages, source.generation, source.checkpoint_step)

    watcher = None
    if job.record.input == FOLLOW:
        watcher, snapshot = watch_generations(
            run, trainer_state.step, logged, load_snapshot, world, call.reporter
        )
    else:
        snapshot = load_snapshot(SegmentInput.of(run, job.record))
    if snapshot.stream.num_skipped:
        call.reporter.warn(
            f"{snapshot.stream.num_skipped} of {len(snapshot.stream.pairs)} pairs have too few "
            "negatives and are skipped"
        )
    track = make_tracker(
        segment.track if world.is_main else None, run.path, run.path.name, asdict(config)
    )

    def note_switch(trainer: Trainer) -> None:
        run.note_switch(trainer.step, trainer.snapshot.generation)

    def keep_state(trainer: Trainer) -> None:
        folder = run.state(trainer.step).path
        save_state(folder, trainer.encoder, trainer.optimizer, trainer.trainer_state)
        run.prune_states()

    def keep_checkpoint(trainer: Trainer) -> None:
        settings = replace(start.settings, training_step=trainer.step)
        frozen = start if config.freeze_passages else None
        publish_checkpoint(run, trainer.encoder, tokenizer, settings, frozen)

    def log(line: dict[str, Any]) -> None:
        atomic.append_line(run.metrics, orjson.dumps(line))
        track(line)

    trainer = Trainer(
        encoder=encoder,
        optimizer=optimizer,
        snapshot=snapshot,
        queries=tokenizer(
            [training_set.queries[name] for name in snapshot.stream.query_ids], "query"
        ),
        pads=(tokenizer.pad_id_of("query"), tokenizer.pad_id_of("passage")),
        config=config,
        segment=segment,
        scale=start.settings.scale,
        dtype=job.dtype,
        world=world,
        step=trainer_state.step,
        at=trainer_state.stream,
        losses=trainer_state.losses,
        last_step=job.record.start_step + job.record.steps,
        save_state=keep_state,
        save_checkpoint=keep_checkpoint,
        log=log,
        switched=note_switch,
        watcher=watcher,
        live=_live(config, job, training_set, snapshot.stream, world),
        ceiling=matmul_ceiling(world.device, job.dtype),
        facts={"segment": job.record.segment},
    )
    if world.is_main:
        note_switch(trainer)
    return trainer


def _check_dtype(trainer_state: TrainerState, job: TrainJob, reporter: Reporter) -> None:
    if trainer_state.dtype not in ("", job.dtype):
        reporter.warn(
            f"this run computed in {trainer_state.dtype} so far and goes on in {job.dtype}: its "
            "losses are not those of an uninterrupted run "
            f"(use --dtype {trainer_state.dtype} for that)"
        )


def _live(
    config: TrainConfig, job: TrainJob, training_set: TrainingSet, stream: PairStream, world: World
) -> LiveNegatives | None:
    """Live retrieval for a frozen passage tower, from vectors that this very tower made."""
    if not config.freeze_passages:
        return None
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.training.live import LiveNegatives

    assert job.embeddings is not None
    embeddings = Embeddings(Path(job.embeddings))
    scope = DatasetScope(embeddings.ids, list(training_set.shares)) if training_set.shares else None
    return LiveNegatives(
        embeddings, world.device, stream.known, config.live_depth, config.negatives_per_positive,
        config.seed, scope,
    )  # fmt: skip


def _passage_rows(
    start: Checkpoint,
    dataset: Dataset,
    doc_ids: list[str],
    call: Call,
) -> TokenRows:
    """Token rows of the documents that occur, in corpus order, from the corpus's token cache."""
    from ance_cli.encoding.tokenize import corpus_tokens
    from ance_cli.formats.tokens import join_rows

    if not doc_ids:
        return join_rows([])
    return corpus_tokens(start, dataset, None, call).rows_of(set(doc_ids))
