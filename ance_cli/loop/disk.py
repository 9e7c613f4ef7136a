"""What a loop will take on disk, from its corpus, its checkpoint and its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ance_cli.config import FollowConfig, LoopConfig, RefreshConfig, SegmentConfig, TrainConfig
from ance_cli.config.presets import train_config
from ance_cli.errors import BadInput
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, locate, positives_of, read_qrels
from ance_cli.formats.jsonl import read_lines
from ance_cli.formats.retention import Extent, disk_need, disk_use
from ance_cli.formats.run_folder import RunFolder
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.training.run_creation import config_of

_FLOAT32_BYTES = 4


def check_disk(
    run: RunFolder,
    config: LoopConfig,
    follow: FollowConfig,
    training: Mapping[str, Any],
    segment: Mapping[str, Any],
    refreshing: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, int]:
    """Bytes that a loop's run will take at most, by part and of `all`, those that it takes already
    (`used`) and those that are `free` on its disk; warns where it will not fit.

    `training`, `segment` and `refreshing` are the flags that were given for the run, its training
    and its refreshes. What an existing run has fixed goes before them.
    """
    need = disk_need(_extent(run, config, follow, training, segment, refreshing))
    used = disk_use(run)["all"]
    free = atomic.free_bytes(run.path)
    if need["all"] > used + free:
        reporter.warn(
            f"{run.path}: this run may take {need['all'] / 1e9:,.1f} GB, it has "
            f"{used / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on its disk. It keeps every "
            "checkpoint (one in --refresh-every steps), and the vectors of --keep generations"
        )
    return {**need, "used": used, "free": free}


def _extent(
    run: RunFolder,
    config: LoopConfig,
    follow: FollowConfig,
    training: Mapping[str, Any],
    segment: Mapping[str, Any],
    refreshing: Mapping[str, Any],
) -> Extent:
    dataset, recipe, start = _start(run, training)
    fixed = run.refresh_settings() if run.has_refresh_settings else {}
    mining = RefreshConfig(**{**refreshing, **fixed})
    qrels = read_qrels(dataset.need("qrels"))
    positives = positives_of(qrels, recipe.min_rel)
    docs = [doc_id for judged in qrels.values() for doc_id in judged]
    last_step = config.segments * config.refresh_every
    return Extent(
        num_docs=sum(1 for _ in read_lines(dataset.corpus)),
        rows_per_doc=start.settings.segments,
        dim=recipe.dim or start.dim,
        id_bytes=math.ceil(sum(len(doc_id.encode()) for doc_id in docs) / len(docs)),
        num_queries=len(qrels),
        num_pairs=sum(map(len, positives.values())),
        num_dev_queries=_num_dev_queries(dataset, mining.dev_split),
        depth=mining.depth,
        negatives=mining.negatives,
        dev_depth=mining.dev_depth,
        weight_bytes=_weight_bytes(start, recipe),
        num_checkpoints=config.segments + 1,
        num_log_lines=last_step // segment.get("log_every", SegmentConfig.log_every),
        keep=follow.keep,
        has_index=mining.index_factory is not None,
    )


def _start(run: RunFolder, training: Mapping[str, Any]) -> tuple[Dataset, TrainConfig, Checkpoint]:
    """The data, the recipe and a checkpoint of a run, or of one that is to be made."""
    if run.exists and (newest := run.newest_checkpoint()):
        facts = run.read()
        dataset = Dataset(Path(facts.data.corpus), Path(facts.data.queries), Path(facts.data.qrels))
        return dataset, config_of(facts.identity), Checkpoint(newest[1])
    recipe = train_config(training.get("preset"), training)
    data, split = training["data"], training.get("split", "train")
    dataset = locate(data, split, *(training.get(part) for part in ("corpus", "queries", "qrels")))
    segments = {name: getattr(recipe, name) for name in ("segmentation", "max_segments")}
    return dataset, recipe, Checkpoint(training["ckpt"]).with_settings(**segments)


def _num_dev_queries(dataset: Dataset, split: str) -> int:
    """Queries that a refresh measures; 0 where there are no labels of that name."""
    labels = sorted(dataset.need("qrels").parent.glob(f"{split}.t*"))
    return len(read_qrels(labels[0])) if labels else 0


def _weight_bytes(start: Checkpoint, recipe: TrainConfig) -> int:
    """Bytes of a checkpoint of the run: float32 weights, its own head or a fresh one, and the
    tokenizer's files."""
    processes = (
        [start.tower("query")] if start.shared else [start.tower("query"), start.tower("passage")]
    )
    files = {path for tower in processes for _, path in tower.files()}
    total = 0
    for path in files:
        is_weights = path.suffix == ".safetensors"
        total += _float32_bytes(path) if is_weights else path.stat().st_size
    if not start.has_head:  # a Linear with its bias, and a LayerNorm
        dim = recipe.dim or start.dim
        total += _FLOAT32_BYTES * (start.dim * dim + 3 * dim)
    return total * (2 if start.shared and recipe.towers == "two" else 1)


def _float32_bytes(path: Path) -> int:
    """What the tensors of a file take in float32."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise BadInput(f"{path}: not a whole safetensors file ({error})") from error
    return _FLOAT32_BYTES * sum(map(math.prod, shapes))
