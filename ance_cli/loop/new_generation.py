"""Making one generation of a run: encode, (index), mine, probe, measure on dev and the guard."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from ance_cli.call import Call
from ance_cli.config import DriverConfig, EncodeConfig, IndexConfig, RefreshConfig, SearchConfig
from ance_cli.config.loop import NO_DEV
from ance_cli.encoding.encode import encode
from ance_cli.evaluation.evaluate import evaluate_runs
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, queries_of_split
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.ledgers import Switch, read_ledger_as
from ance_cli.formats.plan import Plan
from ance_cli.formats.run_folder import REFRESHER, Pointer, RunFolder
from ance_cli.formats.summary import Clock, Summary
from ance_cli.loop.drift import probe_generation, read_probe
from ance_cli.loop.guard import GuardResult, guard_inputs, measure_guard, start_of
from ance_cli.loop.integrity import damaged_parts, negatives_to_compare
from ance_cli.loop.probe import overlap
from ance_cli.loop.refresh_config import labels_of_split
from ance_cli.mining.mine import mine
from ance_cli.mining.mining_job import MiningFiles, shares_of
from ance_cli.mining.mix import PREVIOUS
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource
from ance_cli.retrieval.index import index
from ance_cli.retrieval.search import DenseSearcher, search


@dataclass(frozen=True)
class Start:
    """What a refresh starts from: the newest checkpoint, and the published generation.

    `newest` is the number of the newest generation folder; 0 if there is none.
    """

    step: int
    folder: Path
    published: Pointer | None
    newest: int


@dataclass(frozen=True)
class NewGeneration:
    """The generation that a refresh makes."""

    run: RunFolder
    dataset: Dataset
    config: RefreshConfig
    compute: DriverConfig
    start: Start
    checkpoint: Checkpoint

    @property
    def number(self) -> int:
        published = self.start.published
        return max(self.start.newest, published.generation if published else 0) + 1

    @property
    def before(self) -> GenerationFolder | None:
        """The published generation."""
        published = self.start.published
        return self.run.published_folder(published) if published else None


@dataclass(frozen=True)
class _Work:
    """The generation while its stages fill the folder."""

    new: NewGeneration
    folder: GenerationFolder
    clock: Clock
    call: Call


@dataclass(frozen=True)
class _Vectors:
    """What is searched for negatives, and where."""

    source: VectorSource
    compute: DriverConfig


def fill_and_publish(new: NewGeneration, plan: Plan, call: Call) -> dict[str, Any]:
    """Fill the generation's folder stage by stage and give the folder its name; returns the
    manifest."""
    folder = _open(new, plan, call)
    call = replace(call, force=False)  # the parts are made once
    work = _Work(new, folder, Clock(), call)
    vectors = _encode(work)
    mined = _mine(work, vectors)
    probe_overlap = _probe(work)
    measures = _measure(work, vectors)
    guard = _measure_guard(work)
    atomic.sweep(folder.path, "partial", "removed", "lease")
    step = new.start.step
    now = max(new.run.last_logged_step(), step)
    seconds = work.clock.seconds
    stats = {
        "checkpoint_step": step,
        "age": now - step,
        "probe_overlap": probe_overlap,
        "consumed": _consumed(new, now, mined),
        "seconds": {**seconds, "all": round(sum(seconds.values()), 2)},
        "dev": measures,
        "guard": guard.means if guard else {},
        "guard_fall": guard.below_start if guard else None,
        "audit": mined["audit"],
    }
    return plan.publish_folder({}, stats)


def _open(new: NewGeneration, plan: Plan, call: Call) -> GenerationFolder:
    """The folder to work in, without parts that were damaged since an earlier call made them."""
    folder = GenerationFolder(plan.open_partial(call.force, abandon_other=True))
    for part in damaged_parts(folder):
        call.reporter.warn(f"{part}: was damaged after an earlier call made it; making it again")
        place = str(part.relative_to(new.run.path))
        new.run.event(REFRESHER, "damaged part dropped", part=place)
        atomic.remove(part)
    return folder


def _encode(work: _Work) -> _Vectors:
    """The vectors of the corpus, and an index over them if the run searches one."""
    folder, compute, call = work.folder, work.new.compute, work.call
    with work.clock("encode"):
        workers = EncodeConfig(dtype=compute.dtype, gpus=compute.gpus, ray=compute.ray)
        encode(work.new.checkpoint, work.new.dataset, folder.embeddings, workers, call=call)
    factory = work.new.config.index_factory
    if factory is None:
        return _Vectors(VectorSource(folder.embeddings, "embeddings"), compute)
    here = DriverConfig(dtype=compute.dtype, gpus=compute.local.gpus)
    with work.clock("index"):
        config = IndexConfig(factory=factory, gpus=here.gpus)
        index(folder.embeddings, folder.index, config, call=call)
    return _Vectors(VectorSource(folder.index, "index"), here)


def _mine(work: _Work, vectors: _Vectors) -> Summary:
    new, folder, before = work.new, work.folder, work.new.before
    draws_previous = PREVIOUS in shares_of(new.config, True)
    previous = before.candidates if before and draws_previous else None
    with work.clock("mine"):
        return mine(
            work.new.checkpoint,
            new.dataset,
            vectors.source,
            MiningFiles(
                folder.negatives,
                earlier=negatives_to_compare(before, work.call.reporter),
                candidates=folder.candidates,
                previous=previous if previous and previous.exists() else None,
                bm25=new.run.inputs / "bm25",
            ),
            new.config,
            vectors.compute,
            work.call,
        )


def _probe(work: _Work) -> float | None:
    """Keep the probe's rankings; their overlap with those of the generation before."""
    new, folder = work.new, work.folder
    with work.clock("probe"):
        ranked = probe_generation(
            work.new.checkpoint,
            new.dataset,
            folder,
            Embeddings(folder.embeddings),
            new.config.seed,
            new.compute.local,
        )
        probed = read_probe(new.before) if new.before else None
    return round(overlap(probed.top, ranked), 4) if probed else None


def _measure(work: _Work, vectors: _Vectors) -> dict[str, float]:
    """The means of the dev measures, from the generation's own vectors; `dev.json` keeps the
    measures and `dev.trec` the ranking."""
    config, folder, call = work.new.config, work.folder, work.call
    if config.dev_split == NO_DEV:
        return {}
    dataset = work.new.dataset
    with work.clock("measure"):
        qrels = labels_of_split(dataset.need("qrels"), config.dev_split)
        dev = replace(dataset, qrels=qrels, split=config.dev_split)
        search(
            queries_of_split(dev),
            folder.dev_run,
            DenseSearcher(
                work.new.checkpoint, vectors.source, dataset.corpus, work.new.compute.local
            ),
            SearchConfig(depth=config.dev_depth, probes=config.probes),
            call=call,
        )
        found = evaluate_runs([folder.dev_run], qrels, config.measures)["runs"][0]["measures"]
        atomic.write_bytes(folder.dev, orjson.dumps(found, option=orjson.OPT_INDENT_2))
        means = {name: round(value["mean"], 4) for name, value in found.items()}
        _say(config.dev_split, means, call)
    return means


def _measure_guard(work: _Work) -> GuardResult | None:
    """The measures on the guard, which `guard.json` and `guard.trec` keep; None without a guard."""
    new, folder, call = work.new, work.folder, work.call
    inputs = guard_inputs(new.config)
    if not inputs:
        return None
    with work.clock("guard"):
        start = start_of(new.run, new.config, inputs)
        found = measure_guard(new.checkpoint, new.config, start, folder, new.compute, call)
        atomic.write_bytes(folder.guard, orjson.dumps(found.measures, option=orjson.OPT_INDENT_2))
        _say("guard", found.means, call)
    return found


def _say(what: str, means: dict[str, float], call: Call) -> None:
    shown = "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    call.reporter.say(f"{what}: {shown}")


def _consumed(new: NewGeneration, step: int, mined: Summary) -> float | None:
    """The pairs that were trained on the published generation so far, as a multiple of all pairs;
    None if it was not trained on."""
    published = new.start.published
    begun = [switch for switch in read_ledger_as(new.run.switches, Switch)
             if published and switch.generation == published.generation]  # fmt: skip
    identity = new.run.read().identity
    if not begun:
        return None
    pairs = identity["batch_size"] * identity["devices"] * identity["accumulation"]
    total = mined["audit"]["pairs"]
    return round((step - begun[-1].step) * pairs / total, 4) if total else None
