"""What every rank of a training segment does: load the newest state, train, keep what is made.

All ranks read; rank 0 writes.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import BadInput, Diverged, Stopped
from ance_cli.formats import atomic
from ance_cli.formats.dataset import (
    Dataset,
    owners,
    positives_of,
    read_corpus,
    read_qrels,
    read_queries,
    read_shares,
)
from ance_cli.formats.jsonl import Skipped
from ance_cli.formats.run_folder import RunFolder, cut_ledger, read_ledger
from ance_cli.formats.triples import read_negatives
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.negatives.filtering import Copies
from ance_cli.progress import Reporter
from ance_cli.stages.new_run import config_of, publish_checkpoint

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


def train_rank(
    run: RunFolder,
    config: TrainConfig,
    orders: Orders,
    world: World,
    skipped: Skipped | None,
    reporter: Reporter,
    stream: PairStream | None = None,
) -> None:
    """Train one rank's part of a segment to its end; `stream`, if it was made already."""
    if stream is None:
        stream = make_stream(run.dataset(), config, orders.record, skipped)
    with world.losing_peers():
        trainer = _make_trainer(run, config, orders, world, stream, skipped, reporter)
        trainer.run(reporter, int(orders.record["start_step"]))
        if trainer.step < trainer.last_step:  # another rank was told to stop
            raise Stopped(signal.SIGTERM)
        world.close()


def make_stream(
    dataset: Dataset, config: TrainConfig, record: dict[str, Any], skipped: Skipped | None
) -> PairStream:
    """The pairs of the labels with the negatives of a segment, all checked against the dataset."""
    from ance_cli.training.data import PairStream

    queries = read_queries(dataset.need("queries"), skipped)
    copies = Copies(read_corpus(dataset.corpus, skipped))
    qrels = read_qrels(dataset.need("qrels"), queries, copies.position, skipped)
    positives = positives_of(qrels, config.min_rel)
    pairs = [(query_id, doc_id) for query_id, docs in positives.items() for doc_id in docs]

    def known(query_id: str) -> set[str]:
        own, same = copies.banned(positives[query_id])
        return {copies.doc_ids[place] for place in own | same}

    order = None
    if shares := read_shares(dataset):
        from ance_cli.training.shares import mixed_order

        names = list(shares)
        owner = owners([query_id for query_id, _ in pairs], names)

        def order(epoch: int) -> npt.NDArray[np.int64]:
            return mixed_order(owner, list(shares.values()), config.seed, epoch)

    return PairStream(
        pairs,
        read_negatives(Path(record["negatives"]), queries, copies.position, positives, skipped)
        if config.needs_negatives
        else (),
        copies.position,
        config.seed,
        int(record["checkpoint_step"] or 0),
        config.negatives_per_positive if config.needs_negatives else 0,
        known,
        order,
    )


def _make_trainer(
    run: RunFolder,
    config: TrainConfig,
    orders: Orders,
    world: World,
    stream: PairStream,
    skipped: Skipped | None,
    reporter: Reporter,
) -> Trainer:
    """The trainer, standing at the newest state."""
    from ance_cli.models.dual import enable_gradient_checkpointing, load_dual
    from ance_cli.models.encoder import set_dropout
    from ance_cli.models.tokens import Tokenizer
    from ance_cli.training.flops import matmul_ceiling
    from ance_cli.training.optim import make_optimizer
    from ance_cli.training.state import Standing, load_state, save_state
    from ance_cli.training.trackers import make_tracker
    from ance_cli.training.trainer import Trainer

    dataset, record, segment = run.dataset(), orders.record, orders.segment
    newest = run.newest_checkpoint()
    if newest is None:
        raise BadInput(f"{run.checkpoints}: there is no whole checkpoint in the run")
    start = Checkpoint(newest[1])
    tokenizer = Tokenizer(start)
    encoder = load_dual(start).to(world.device)
    if config.freeze_passages:
        encoder.passage.requires_grad_(False)
    if segment.gradient_checkpointing:
        enable_gradient_checkpointing(encoder)
    if config.dropout is not None:
        set_dropout(encoder, config.dropout)
    optimizer = make_optimizer(encoder, config.optimizer, config.lr, config.weight_decay)
    standing = Standing()
    if state := run.newest_state():
        standing = load_state(state[1], encoder, optimizer)
    if world.is_main:
        _prepare_ledgers(run, orders, standing, reporter)
        if stream.num_skipped:
            reporter.warn(
                f"{stream.num_skipped} of {len(stream.pairs)} pairs have too few negatives "
                "and are skipped"
            )
    track = make_tracker(
        segment.track if world.is_main else None, run.path, run.path.name, asdict(config)
    )

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

    queries = read_queries(dataset.need("queries"), skipped)
    doc_ids = [] if config.freeze_passages else stream.doc_ids
    return Trainer(
        encoder=encoder,
        optimizer=optimizer,
        stream=stream,
        queries=tokenizer([queries[name] for name in stream.query_ids], "query"),
        passages=_passage_rows(start, dataset, doc_ids, skipped, reporter),
        pads=(tokenizer.pad_id_of("query"), tokenizer.pad_id_of("passage")),
        config=config,
        segment=segment,
        scale=start.pins.scale,
        dtype=orders.dtype,
        world=world,
        step=standing.step,
        at=standing.stream,
        losses=standing.losses,
        last_step=record["start_step"] + record["steps"],
        save_state=keep_state,
        save_checkpoint=keep_checkpoint,
        log=log,
        live=_live(config, orders, stream, start, world),
        ceiling=matmul_ceiling(world.device, orders.dtype),
        facts={
            "segment": record["segment"],
            "generation": record["generation"],
            "negatives_step": record["checkpoint_step"],
        },
    )


def _prepare_ledgers(
    run: RunFolder, orders: Orders, standing: Standing, reporter: Reporter
) -> None:
    """Cut the log back to the state, and note which negatives come in with the segment."""
    if standing.dtype not in ("", orders.dtype):
        reporter.warn(
            f"this run computed in {standing.dtype} so far and goes on in {orders.dtype}: its "
            "losses are not those of an uninterrupted run "
            f"(use --dtype {standing.dtype} for that)"
        )
    cut_ledger(run.metrics, standing.step)
    generation = orders.record["generation"]
    if generation is not None and standing.step == orders.record["start_step"]:
        switch = {"step": standing.step, "generation": generation}
        if switch not in read_ledger(run.switches):
            atomic.append_line(run.switches, orjson.dumps(switch))


def _live(
    config: TrainConfig, orders: Orders, stream: PairStream, checkpoint: Checkpoint, world: World
) -> LiveNegatives | None:
    """Live retrieval for a frozen passage tower, from vectors that this very tower made."""
    if not config.freeze_passages:
        return None
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.training.live import LiveNegatives

    assert orders.embeddings is not None
    return LiveNegatives(
        Embeddings(Path(orders.embeddings)), world.device, stream.known, config.live_depth,
        config.negatives_per_positive, config.seed,
    )  # fmt: skip


def _passage_rows(
    start: Checkpoint,
    dataset: Dataset,
    doc_ids: list[str],
    skipped: Skipped | None,
    reporter: Reporter,
) -> TokenRows:
    """Token rows of the documents that occur, in corpus order, from the corpus's token cache."""
    from ance_cli.formats.tokens import join_rows
    from ance_cli.stages.tokenize import corpus_tokens

    if not doc_ids:
        return join_rows([])
    return corpus_tokens(start, dataset, None, skipped, reporter).rows_of(set(doc_ids))
