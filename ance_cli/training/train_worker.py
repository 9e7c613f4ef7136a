"""The work of each rank of a training segment: load the newest state, train, write the results.

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
from ance_cli.config.sets import Tracker
from ance_cli.errors import (
    AnceError,
    BadInput,
    Diverged,
    Mismatch,
    ResourceExhausted,
    Stopped,
    is_out_of_memory,
)
from ance_cli.formats import atomic, lease
from ance_cli.formats.ledgers import FOLLOW, Segment, cut_ledger
from ance_cli.formats.records import parse_record
from ance_cli.formats.run_folder import RunFolder
from ance_cli.formats.tokens import TokenRows, join_rows
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.training.data import Ints, NegativesSnapshot, TrainingSet
from ance_cli.training.generation_watcher import GenerationWatcher, watch_generations
from ance_cli.training.launch import Devices
from ance_cli.training.run_creation import config_of, publish_checkpoint
from ance_cli.training.segments import SegmentInput, state_step
from ance_cli.training.trackers import Track, make_tracker

if TYPE_CHECKING:
    import torch

    from ance_cli.models.dual import DualEncoder
    from ance_cli.training.distributed import World
    from ance_cli.training.live import LiveNegatives
    from ance_cli.training.state import TrainerState
    from ance_cli.training.trainer import TrainedModel, Trainer


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
        from ance_cli.models.devices import choose_dtype, training_dtype

        device = devices.here()[0]
        dtype = training_dtype(config.dtype, device)
        if dtype != choose_dtype(config.dtype, device):
            call.reporter.say("training in fp32: in fp16 small gradients would become 0")
        return cls(
            segment,
            record,
            dtype=dtype,
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


def join_segment(
    run: RunFolder,
    reporter_of: Callable[[bool, bool], Reporter],
    on_lost: Callable[[AnceError], None],
) -> None:
    """Train as one rank of several: read the job in the run folder, join the other ranks, train.

    `reporter_of(is_main, quiet)` makes the rank's reporter. `on_lost` shows an error and ends the
    process: another rank stands still.
    """
    from ance_cli.training.distributed import join_world

    job = TrainJob.from_json(run.train_job.read_text(encoding="utf-8"))
    world = join_world(Devices(job.gpus, job.cpu_workers).here(), on_lost)
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
        sys.exit(problem.exit_code)  # the main rank reports it
    except Stopped as stop:
        sys.exit(stop.exit_code)  # the process that started the ranks reports it


def train_rank(
    run: RunFolder,
    config: TrainConfig,
    job: TrainJob,
    world: World,
    training_set: TrainingSet | None = None,
    call: Call = Call(),
) -> None:
    """Train one rank's part of a segment to its end; reads `training_set` if it is None."""
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
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceExhausted(
                f"{world.device}: memory ran out in step {trainer.step + 1}, at "
                f"{config.batch_size} pairs for each device",
                hint="repeat the command with --grad-cache 8 or --gradient-checkpointing, which "
                "need less memory for the same steps; another --batch-size needs a new run",
            ) from error
        if trainer.step < trainer.last_step:  # another rank received a signal
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
    """The trainer at the newest state of the run."""
    from ance_cli.models.flops import matmul_ceiling
    from ance_cli.training.trainer import Trainer

    run.dataset()  # refuses data that changed since the run began
    model = _load_model(run, config, job, world, call.reporter)
    resumed = _resume(run, model, job, world, call.reporter)
    load = SnapshotLoader(model.start, training_set, call)
    watcher, snapshot = _first_negatives(run, job, resumed, load, world)
    texts = [training_set.queries[query_id] for query_id in training_set.query_ids]
    queries = model.tokenizer(texts, "query")
    model.tokenizer.say_cut("query", call.reporter)
    trainer = Trainer(
        model=model,
        snapshot=snapshot,
        queries=queries,
        config=config,
        segment=job.segment,
        dtype=job.dtype,
        world=world,
        state=resumed.state,
        last_step=job.record.start_step + job.record.steps,
        output=RunOutput.open(run, model, config, job.segment.track if world.is_main else None),
        watcher=watcher,
        live=_live(config, job, training_set, world),
        ceiling=matmul_ceiling(world.device, job.dtype),
        facts={"segment": job.record.segment},
    )
    if world.is_main:
        trainer.output.log_switch(trainer)
    return trainer


def _load_model(
    run: RunFolder, config: TrainConfig, job: TrainJob, world: World, reporter: Reporter
) -> TrainedModel:
    """The newest checkpoint on the device, and a new optimizer for it."""
    from ance_cli.models.attention import use_float32
    from ance_cli.models.devices import torch_dtype
    from ance_cli.models.dual import enable_gradient_checkpointing, load_dual
    from ance_cli.models.encoder import set_dropout
    from ance_cli.models.tokens import Tokenizer
    from ance_cli.training.layers import freeze_layers
    from ance_cli.training.optim import make_optimizer
    from ance_cli.training.sharding import outline_of, shard
    from ance_cli.training.trainer import TrainedModel

    newest = run.checked_checkpoint()
    if newest is None:
        raise BadInput(f"{run.checkpoints}: the run has no whole checkpoint")
    start = Checkpoint(newest[1])
    tokenizer = Tokenizer(start)
    encoder = load_dual(start, torch_dtype(job.dtype))
    if world.device.type == "cpu":
        for tower in (encoder.query, encoder.passage):
            use_float32(tower.backbone)
    if config.freeze_passages:
        encoder.passage.requires_grad_(False)
    freeze_layers(encoder, config.freeze_layers)
    if job.segment.gradient_checkpointing:
        enable_gradient_checkpointing(encoder)
    if config.dropout is not None:
        set_dropout(encoder, config.dropout)
    if world.device.type == "cuda":
        pack_batches(encoder, world.device, job.dtype, reporter)
    outline = None
    if job.segment.shard == "full":
        outline = outline_of(encoder)
        shard(encoder, world, job.dtype)
    else:
        encoder.to(world.device)
    return TrainedModel(start, tokenizer, encoder, make_optimizer(encoder, config), outline)


def pack_batches(
    encoder: DualEncoder, device: torch.device, dtype: str, reporter: Reporter
) -> None:
    """Train on packed batches, if the families of both towers allow it; says why not."""
    from ance_cli.models.packing import cannot_pack, use_packing

    towers = list(dict.fromkeys((encoder.query, encoder.passage)))
    reasons = [cannot_pack(tower.backbone, device, dtype, training=True) for tower in towers]
    if reason := next(filter(None, reasons), None):
        reporter.say(f"batches are padded: {reason}")
        return
    for tower in towers:
        use_packing(tower.backbone)
        tower.packs = True


@dataclass(frozen=True)
class Resumed:
    """The state that a segment continues from, and the last step in the log of an earlier call."""

    state: TrainerState
    logged: int


def _resume(
    run: RunFolder, model: TrainedModel, job: TrainJob, world: World, reporter: Reporter
) -> Resumed:
    """Load the newest state into the model, and cut the training log back to it."""
    from ance_cli.training.state import TrainerState, load_state

    state_step(run)  # refuses a checkpoint that is newer than the state
    newest = run.checked_state()
    state = load_state(newest[1], model.encoder, model.optimizer) if newest else TrainerState()
    if state.dtype not in ("", job.dtype):
        reporter.warn(
            f"this run was trained in {state.dtype} so far and continues in {job.dtype}: its "
            f"losses will differ from those of an uninterrupted run (use --dtype {state.dtype} to "
            "avoid that)"
        )
    resumed = Resumed(state, run.last_logged_step())
    world.wait()  # until every rank has read the log
    if world.is_main:
        cut_ledger(run.metrics, state.step)
    return resumed


@dataclass(frozen=True)
class SnapshotLoader:
    """Reads the negatives of a segment or a generation, and the token rows of their documents."""

    start: Checkpoint
    training_set: TrainingSet
    call: Call

    def __call__(self, source: SegmentInput) -> NegativesSnapshot:
        stream = self.training_set.stream(source.path, source.checkpoint_step or 0)
        is_encoded = not self.training_set.config.freeze_passages
        passages = self.token_rows(stream.docs) if is_encoded else join_rows([])
        return NegativesSnapshot(stream, passages, source.generation, source.checkpoint_step)

    def token_rows(self, docs: Ints) -> TokenRows:
        """The token rows of some positions in the corpus, from the corpus's token cache."""
        from ance_cli.encoding.tokenize import corpus_tokens

        dataset = self.training_set.dataset
        cache = corpus_tokens(self.start, dataset, None, self.call)
        if cache.manifest["inputs"]["corpus"] != self.training_set.corpus_hash:
            raise Mismatch(
                f"{dataset.corpus}: changed while the run trained on it",
                hint="restore the old file and repeat the command",
            )
        return cache.rows_of(docs)


def _first_negatives(
    run: RunFolder, job: TrainJob, resumed: Resumed, load: SnapshotLoader, world: World
) -> tuple[GenerationWatcher | None, NegativesSnapshot]:
    """The negatives of the next batch and, with --follow, the watcher for newer negatives."""
    watcher, reporter = None, load.call.reporter
    if job.record.input == FOLLOW:
        watcher, snapshot = watch_generations(
            run, resumed.state.step, resumed.logged, load, world, reporter
        )
    else:
        snapshot = load(SegmentInput.of(run, job.record))
    if snapshot.stream.num_queries_removed:
        reporter.warn(
            f"{snapshot.stream.num_queries_removed} negatives are the query itself and are left out"
        )
    if snapshot.stream.num_skipped:
        reporter.warn(
            f"{snapshot.stream.num_skipped} of {len(snapshot.stream.pairs)} pairs have too few "
            "negatives and are skipped"
        )
    return watcher, snapshot


@dataclass(frozen=True)
class RunOutput:
    """Writes what a trainer made into the run folder (a `TrainerOutput`)."""

    run: RunFolder
    model: TrainedModel
    frozen_passages_of: Checkpoint | None
    track: Track

    @classmethod
    def open(
        cls, run: RunFolder, model: TrainedModel, config: TrainConfig, tracker: Tracker | None
    ) -> RunOutput:
        """The output of a run, which also sends its log to a tracker."""
        track = make_tracker(tracker, run.path, run.path.name, asdict(config))
        return cls(run, model, model.start if config.freeze_passages else None, track)

    def save_state(self, trainer: Trainer) -> None:
        from ance_cli.training.state import save_state

        folder = self.run.state(trainer.step).path
        main = trainer.world.is_main
        save_state(folder, trainer.encoder, trainer.optimizer, trainer.trainer_state, main)
        if main:
            self.run.prune_states()

    def save_checkpoint(self, trainer: Trainer) -> None:
        from ance_cli.training.sharding import whole_encoder

        encoder = whole_encoder(trainer.encoder, self.model.outline, trainer.world.is_main)
        if encoder is not None:
            settings = replace(self.model.start.settings, training_step=trainer.step)
            publish_checkpoint(self.run, encoder, settings, self.frozen_passages_of)

    def log(self, line: dict[str, Any]) -> None:
        atomic.append_line(self.run.metrics, orjson.dumps(line))
        self.track(line)

    def log_switch(self, trainer: Trainer) -> None:
        self.run.note_switch(trainer.step, trainer.snapshot.generation)


def _live(
    config: TrainConfig, job: TrainJob, training_set: TrainingSet, world: World
) -> LiveNegatives | None:
    """Live retrieval from the vectors of a frozen passage tower."""
    if not config.freeze_passages:
        return None
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.training.live import LiveNegatives

    assert job.embeddings is not None
    return LiveNegatives(Embeddings(Path(job.embeddings)), training_set, world.device)
