"""The guard: a general collection on which each generation is measured too (`--guard`).

Training on one domain can make a model worse on everything else. A generation has fallen if the
first of the run's measures is lower on the guard than in the run's start by more than
`--guard-margin`. The start is the first generation that was measured on the same collection in the
same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import DriverConfig, EncodeConfig, RefreshConfig, SearchConfig
from ance_cli.encoding.encode import encode
from ance_cli.errors import BadInput, Mismatch
from ance_cli.evaluation.evaluate import evaluate_runs
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, locate, queries_of_split, splits_of
from ance_cli.formats.generation_folder import GenerationFolder, is_unchanged
from ance_cli.formats.run_folder import RunFolder
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource
from ance_cli.retrieval.search import DenseSearcher, search

_INPUT = "guard"
"""The manifest input of a generation that was measured on a guard."""


def guard_dataset(named: str) -> Dataset:
    """The collection that `DIR` or `DIR:SPLIT` names; a folder whose name contains a colon is taken
    literally. Without a split it is `dev`, or `test` if there is no dev: the guard takes part in
    the choice of the best generation, and final figures need labels that took no part.

    Raises `BadInput` if there is no such folder or split.
    """
    folder, colon, split = named.rpartition(":")
    if not colon or Path(named).exists():
        folder = named
        split = "dev" if "dev" in splits_of(Path(named)) else "test"
    if not Path(folder).is_dir():
        raise BadInput(
            f"--guard {named}: no such dataset folder",
            hint="name a folder with corpus.jsonl, queries.jsonl and qrels/, as DIR or DIR:SPLIT",
        )
    return locate(Path(folder), split)


def guard_inputs(config: RefreshConfig) -> dict[str, str]:
    """The manifest input that a guard adds to a generation: a hash of its files."""
    if config.guard is None:
        return {}
    return {_INPUT: guard_dataset(config.guard).fingerprint("corpus", "queries", "qrels")}


def check_same_guard(before: GenerationFolder | None, inputs: dict[str, str], guard: str) -> None:
    """Raise `Mismatch` if the generation before was measured on other files of the guard."""
    measured_on = before.read_manifest()["inputs"].get(_INPUT) if before else None
    if before and measured_on not in (None, inputs[_INPUT]):
        raise Mismatch(
            f"--guard {guard}: its files have changed since generation {before.number} was "
            "measured on them",
            hint="restore the files, or measure from here on the present ones with "
            "ance refresh --force",
        )


def measured_alike(manifest: dict[str, Any], config: RefreshConfig, inputs: dict[str, str]) -> bool:
    """Whether a generation was measured on this guard, with these measures and this depth; without
    a guard, always. `inputs` are the `guard_inputs` of the config."""
    if not inputs:
        return True
    shaping, found = manifest["shaped_by"], manifest["inputs"].get(_INPUT)
    return found == inputs[_INPUT] and all(
        shaping.get(name) == getattr(config, name) for name in ("measures", "dev_depth")
    )


def start_of(
    run: RunFolder, config: RefreshConfig, inputs: dict[str, str]
) -> GenerationFolder | None:
    """The generation that later ones are compared with; None if there is none yet."""
    for generation in run.all_generations():
        if generation.is_readable and measured_alike(generation.read_manifest(), config, inputs):
            return generation
    return None


@dataclass(frozen=True)
class GuardResult:
    """A generation's measures on the guard, and how far the first one is below the start's."""

    measures: dict[str, dict[str, float]]
    """Mean and interval of each; with the difference and the p-values of paired tests against the
    start, if its ranking still exists."""
    means: dict[str, float]
    below_start: float = 0.0


def measure_guard(
    checkpoint: Checkpoint,
    config: RefreshConfig,
    start: GenerationFolder | None,
    folder: GenerationFolder,
    compute: DriverConfig,
    call: Call = Call(),
) -> GuardResult:
    """Rank the guard's queries with the checkpoint, searching exactly, and measure the ranking.

    A ranking that an earlier call finished is kept; otherwise only the missing blocks of vectors
    are encoded. The vectors are removed when the queries are ranked.
    """
    assert config.guard is not None
    guard = guard_dataset(config.guard)
    if not folder.guard_run.exists():
        workers = EncodeConfig(dtype=compute.dtype, gpus=compute.gpus, ray=compute.ray)
        encode(checkpoint, guard, folder.guard_embeddings, workers, call=call)
        source = VectorSource(folder.guard_embeddings, "embeddings")
        search(
            queries_of_split(guard),
            folder.guard_run,
            DenseSearcher(checkpoint, source, guard.corpus, compute.local),
            SearchConfig(depth=config.dev_depth),
            call=call,
        )
    atomic.remove(folder.guard_embeddings)
    runs = [folder.guard_run]
    if start and is_unchanged(start.guard_run, "run", start.guard_run):
        runs = [start.guard_run, *runs]
    found = evaluate_runs(runs, guard.qrels, config.measures)["runs"][-1]["measures"]
    means = {name: round(value["mean"], 4) for name, value in found.items()}
    if start is None:
        return GuardResult(found, means)
    first = next(iter(means))
    before = start.read_manifest()["stats"]["guard"][first]
    below = round(before - means[first], 4)
    if below > config.guard_margin:
        p = found[first].get("p_randomisation")
        tested = "" if p is None else f"; paired randomisation test: p {p:.4f}"
        call.reporter.warn(
            f"on the guard {config.guard}, {first} fell from {before:.4f} (generation "
            f"{start.number}) to {means[first]:.4f}, by more than --guard-margin "
            f"{config.guard_margin:g}{tested}. If the model gets worse outside its training data, "
            "lower --lr, train fewer steps, or add training pairs of such a collection with "
            "ance merge"
        )
    return GuardResult(found, means, below)


def fallen(run: RunFolder) -> str | None:
    """Why a loop with `--on-guard stop` should stop: the published generation has fallen."""
    published = run.published()
    if published is None:
        return None
    below = run.published_folder(published).read_manifest()["stats"].get("guard_fall") or 0.0
    margin = RefreshConfig(**run.refresh_settings()).guard_margin
    if below <= margin:
        return None
    best = f"; the best checkpoint within it is {run.best}" if run.best.exists() else ""
    return (
        f"generation {published.generation} is {below:.4f} below the start on the guard, more than "
        f"--guard-margin {margin:g}{best}"
    )
