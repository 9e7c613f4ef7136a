"""Which generations a run keeps, and how much disk space a run needs and uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ance_cli.errors import ResourceExhausted
from ance_cli.formats import atomic, lease
from ance_cli.formats.generation_folder import LARGE
from ance_cli.formats.run_folder import REFRESHER, RunFolder


def prune(run: RunFolder, keep: int) -> list[Path]:
    """Remove the large parts of all but the newest `keep` generations; returns the removed parts.

    The published generation and damaged ones keep their parts, and nothing is removed while
    `run.json` or the pointer is missing or damaged. A part with a reader's lease stays until a
    later call.
    """
    published = run.published() if run.is_whole else None
    if published is None:
        return []
    atomic.sweep(run.generations, "removed")
    whole = [each for each in run.all_generations() if each.is_readable]
    removed = []
    for generation in whole[: -max(1, keep)]:
        if generation.number == published.generation:
            continue
        atomic.sweep(generation.path, "removed")
        for part in generation.large_parts:
            if part.exists() and not lease.has_readers(part):
                atomic.remove(part)
                removed.append(part)
    if removed:
        run.event(REFRESHER, "pruned", parts=[str(path.relative_to(run.path)) for path in removed])
    return removed


@dataclass(frozen=True)
class Extent:
    """The quantities that determine the size of a run."""

    num_docs: int
    rows_per_doc: int
    """The most segments of a document."""
    dim: int
    id_bytes: int
    """Bytes of the id of a document or query."""
    num_queries: int
    num_pairs: int
    num_dev_queries: int
    num_guard_docs: int
    num_guard_queries: int
    depth: int
    negatives: int
    dev_depth: int
    weight_bytes: int
    """Bytes of a checkpoint in float32, including its tokenizer."""
    num_checkpoints: int
    """Every checkpoint is kept and has a generation."""
    num_log_lines: int
    keep: int
    has_index: bool


def disk_need(extent: Extent) -> dict[str, int]:
    """Upper bounds in bytes for each part of a run, and for `all` parts together.

    Counts float16 vectors, a Flat index if the run has one, 8 bytes per candidate, float32 weights,
    and two resume states of three times the weights; and one more of each, which is written while
    the others exist. The guard's vectors exist once. Records are the negatives and runs of every
    generation, and the log.
    """
    ids = extent.num_docs * (extent.id_bytes + 1 + 8)  # an id, a newline, and the document's offset
    vectors = extent.num_docs * extent.rows_per_doc * extent.dim * 2
    guarded = extent.num_guard_docs * (extent.rows_per_doc * extent.dim * 2 + extent.id_bytes + 9)
    pair = _PAIR_BYTES + extent.negatives * (extent.id_bytes + _NEGATIVE_BYTES)
    records = extent.num_pairs * pair
    ranked = (extent.num_dev_queries + extent.num_guard_queries) * extent.dev_depth
    records += ranked * (2 * extent.id_bytes + _RUN_LINE_BYTES)
    candidates = extent.num_queries * (extent.depth * 8 + extent.id_bytes + 1)
    candidates += extent.num_pairs * (extent.id_bytes + _POSITIVE_BYTES)
    need = {
        "embeddings": (extent.keep + 1) * (vectors + ids) + guarded,
        "index": (extent.keep + 1) * (2 * vectors + ids) if extent.has_index else 0,
        "candidates": (extent.keep + 2) * candidates,  # and those of BM25, if it is a source
        "checkpoints": (extent.num_checkpoints + 1) * extent.weight_bytes,
        "states": 3 * 3 * extent.weight_bytes,
        "records": extent.num_checkpoints * (records + _GENERATION_BYTES)
        + extent.num_log_lines * _LOG_LINE_BYTES,
    }
    return {**need, "all": sum(need.values())}


_PAIR_BYTES, _NEGATIVE_BYTES = 160, 50
"""Bytes in a line of negatives in addition to the ids: for the pair, and for each negative."""
_POSITIVE_BYTES = 40
_RUN_LINE_BYTES = 30
_LOG_LINE_BYTES = 400
_GENERATION_BYTES = 50_000
"""Bytes of a generation's manifests, audit and probe."""


def disk_use(run: RunFolder) -> dict[str, int]:
    """Bytes that the files of a run use now, by the parts of `disk_need`.

    An unfinished artifact counts as the part that it will become. Other processes may add and
    remove files meanwhile.
    """
    use = dict.fromkeys((*LARGE, "checkpoints", "states", "records"), 0)
    for folder, _, names in os.walk(run.path):
        part = _part_of(run, Path(folder))
        for name in names:
            try:
                use[part] += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return {**use, "all": sum(use.values())}


def _part_of(run: RunFolder, folder: Path) -> str:
    """The part that the files of a folder belong to."""
    if folder.is_relative_to(run.checkpoints):
        return "checkpoints"
    if folder.is_relative_to(run.states):
        return "states"
    if folder.is_relative_to(run.generations):
        place = folder.relative_to(run.generations).parts  # the generation, its part, and so on
        part = place[1].strip(".") if len(place) > 1 else ""
        name = part.removesuffix(".partial").removesuffix(".removed").removeprefix("guard-")
        return name if name in LARGE else "records"
    return "records"


_LEDGERS = 1 << 20
"""Bytes for new lines of the log and the other ledgers."""


def ending_need(run: RunFolder) -> int:
    """Bytes that the end of any training needs: one checkpoint, one resume state and the log.

    Both are as large as the newest ones; before the first state, a state counts as three times the
    weights (the weights and two moments). Checkpoints during training are not counted: `disk_need`
    counts those.
    """
    checkpoint, state = run.newest_checkpoint(), run.newest_state()
    weights = _size(checkpoint[1]) if checkpoint else 0
    return weights + (_size(state[1]) if state else 3 * weights) + _LEDGERS


def has_room(run: RunFolder) -> bool:
    """Whether the disk has room for one checkpoint and state of this run."""
    return atomic.free_bytes(run.path) >= ending_need(run)


def check_free(run: RunFolder) -> None:
    """Raise `ResourceExhausted` if the disk has no room for the end of a training (`ending_need`).

    Checked before the first step, so that no step is lost to a disk that was already full.
    """
    free, need = atomic.free_bytes(run.path), ending_need(run)
    if free < need:
        raise ResourceExhausted(
            f"{run.path}: no room left on the disk for the checkpoint and the state after these "
            f"steps: {free / 1e6:,.1f} MB are free, {need / 1e6:,.1f} MB are needed",
            hint=atomic.FREE_SPACE,
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
