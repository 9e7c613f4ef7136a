"""What a run keeps of its generations, and what a run will take on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ance_cli.formats import atomic, lease
from ance_cli.formats.run_folder import RunFolder

EMBEDDINGS, INDEX, CANDIDATES = "embeddings", "index", "candidates"
LARGE = (EMBEDDINGS, INDEX, CANDIDATES)
"""The parts of a generation that go; negatives, audit, dev measures and manifests stay."""


def prune(run: RunFolder, keep: int) -> list[Path]:
    """Remove the large parts of all but the newest `keep` generations; returns what went.

    A part that somebody reads (its lease) stays until a later call.
    """
    atomic.sweep(run.generations, "removed")
    numbered = [path for path in sorted(run.generations.glob("[0-9]*")) if path.name.isdecimal()]
    removed = []
    for folder in numbered[: max(0, len(numbered) - keep)]:
        atomic.sweep(folder, "removed")
        for name in LARGE:
            part = folder / name
            if part.exists() and not lease.has_readers(part):
                atomic.remove(part)
                removed.append(part)
    if removed:
        run.event(
            "inferencer", "pruned", parts=[str(path.relative_to(run.path)) for path in removed]
        )
    return removed


def disk_need(
    num_docs: int,
    rows_per_doc: int,
    dim: int,
    num_queries: int,
    depth: int,
    weight_bytes: int,
    num_checkpoints: int,
    keep: int,
    has_index: bool,
) -> Mapping[str, int]:
    """Bytes, at most, of each part of a run: float16 vectors, a Flat index beside them where one is
    asked for, candidates of 8 bytes each, float32 weights, and two resume states of three times
    the weights, while one more of each is being written."""
    vectors = num_docs * rows_per_doc * dim * 2
    need = {
        "embeddings": (keep + 1) * vectors,
        "index": (keep + 1) * 2 * vectors if has_index else 0,
        "candidates": (keep + 1) * num_queries * depth * 8,
        "checkpoints": (num_checkpoints + 1) * weight_bytes,
        "states": 3 * 3 * weight_bytes,
    }
    return {**need, "all": sum(need.values())}


def has_room(run: RunFolder) -> bool:
    """Whether the disk takes another resume state of the run, or another megabyte."""
    newest = run.newest_state()
    needed = disk_use(newest[1]) if newest else 0
    return shutil.disk_usage(run.path).free > max(needed, 1 << 20)


def disk_use(folder: Path) -> int:
    """Bytes that the files below a folder take."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except FileNotFoundError:  # a run that is being written
            continue
    return total
