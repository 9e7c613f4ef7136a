"""The disk space that a loop needs, from its corpus, its checkpoint and its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ance_cli.config import FollowConfig, LoopConfig, RefreshConfig, SegmentConfig, TrainConfig
from ance_cli.config.presets import train_config
from ance_cli.config.sets import Side
from ance_cli.errors import BadInput
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, Qrels, locate, positives_of, read_qrels
from ance_cli.formats.jsonl import read_lines
from ance_cli.formats.retention import Extent, disk_need, disk_use
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.commands import refresh_settings
from ance_cli.loop.guard import guard_dataset
from ance_cli.loop.refresh_config import labels_of_split
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.training.run_creation import config_of, start_checkpoint

_FLOAT32_BYTES = 4


def check_disk(
    run: RunFolder,
    config: LoopConfig,
    follow: FollowConfig,
    given: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, int]:
    """The bytes that the run of a loop will need at most, by part and in `all`; the bytes that it
    has now (`used`) and those that are `free` on its disk. Warns if the run will not fit.

    `given` holds the settings of the run, its training and its refreshes that the caller set. The
    settings that an existing run has fixed take precedence.
    """
    need = disk_need(_extent(run, config, follow, given))
    used = disk_use(run)["all"]
    free = atomic.free_bytes(run.path)
    if need["all"] > used + free:
        reporter.warn(
            f"{run.path}: this run may need {need['all'] / 1e9:,.1f} GB; it has "
            f"{used / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on its disk. A run keeps "
            "every checkpoint (one every --refresh-every steps), and the vectors of --keep "
            "generations"
        )
    return {**need, "used": used, "free": free}


def _extent(
    run: RunFolder, config: LoopConfig, follow: FollowConfig, given: Mapping[str, Any]
) -> Extent:
    dataset, recipe, start = start_of(run, given)
    mining = mining_of(run, given)
    qrels = read_qrels(dataset.need("qrels"))
    positives = positives_of(qrels, recipe.min_rel)
    guard = guard_dataset(mining.guard) if mining.guard else None
    guarded = read_qrels(guard.need("qrels")) if guard else {}
    num_docs = sum(1 for _ in read_lines(dataset.corpus))
    return Extent(
        num_docs=num_docs,
        rows_per_doc=start.settings.segments,
        dim=recipe.dim or start.dim,
        id_bytes=max(_id_bytes(qrels), _id_bytes(guarded)),
        num_queries=len(qrels),
        num_pairs=sum(map(len, positives.values())),
        num_dev_queries=_num_dev_queries(dataset, mining.dev_split),
        num_guard_docs=sum(1 for _ in read_lines(guard.corpus)) if guard else 0,
        num_guard_queries=len(guarded),
        depth=min(mining.depth, num_docs),
        negatives=mining.negatives,
        dev_depth=min(mining.dev_depth, num_docs),
        weight_bytes=_weight_bytes(start, recipe),
        num_checkpoints=config.segments + 1,
        num_log_lines=config.last_step // given.get("log_every", SegmentConfig.log_every),
        keep=follow.keep,
        has_index=mining.index_factory is not None,
    )


def _id_bytes(qrels: Qrels) -> int:
    """Bytes of the average id of a document, from the judged ones."""
    docs = [doc_id for judged in qrels.values() for doc_id in judged]
    return math.ceil(sum(len(doc_id.encode()) for doc_id in docs) / max(len(docs), 1))


def mining_of(run: RunFolder, given: Mapping[str, Any]) -> RefreshConfig:
    """The settings of the run's refreshes; those that it has fixed take precedence."""
    fixed = run.refresh_settings() if run.has_refresh_settings else {}
    return RefreshConfig(**{**refresh_settings(given), **fixed})


def start_of(run: RunFolder, given: Mapping[str, Any]) -> tuple[Dataset, TrainConfig, Checkpoint]:
    """The data, the recipe and a checkpoint of a run, whether it exists or will be made."""
    if run.exists and (newest := run.newest_checkpoint()):
        facts = run.read()
        dataset = Dataset(Path(facts.data.corpus), Path(facts.data.queries), Path(facts.data.qrels))
        return dataset, config_of(facts.identity), Checkpoint(newest[1])
    recipe = train_config(given.get("preset"), given)
    data, split = given["data"], given.get("split", "train")
    dataset = locate(data, split, *(given.get(part) for part in ("corpus", "queries", "qrels")))
    return dataset, recipe, start_checkpoint(Path(given["ckpt"]), recipe)


def _num_dev_queries(dataset: Dataset, split: str) -> int:
    """The queries that a refresh measures; 0 if the split has no labels."""
    try:
        labels = labels_of_split(dataset.need("qrels"), split)
    except BadInput:
        return 0
    return len(read_qrels(labels))


def _weight_bytes(start: Checkpoint, recipe: TrainConfig) -> int:
    """Bytes of a checkpoint of the run: float32 weights, the head of the start or a new one, and
    the tokenizer's files."""
    sides: tuple[Side, ...] = ("query",) if start.shared else ("query", "passage")
    files = {path for side in sides for _, path in start.tower(side).files()}
    total = 0
    for path in files:
        is_weights = path.suffix == ".safetensors"
        total += _float32_bytes(path) if is_weights else path.stat().st_size
    if not start.has_head:  # a Linear with its bias, and a LayerNorm
        dim = recipe.dim or start.dim
        total += _FLOAT32_BYTES * (start.dim * dim + 3 * dim)
    return total * (2 if start.shared and recipe.towers == "two" else 1)


def _float32_bytes(path: Path) -> int:
    """Bytes of a file's tensors in float32."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise BadInput(f"{path}: not a complete safetensors file ({error})") from error
    return _FLOAT32_BYTES * sum(map(math.prod, shapes))
