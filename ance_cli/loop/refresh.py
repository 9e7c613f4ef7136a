"""`ance refresh`: one refresh of a run, from its newest checkpoint to published negatives.

This is what the loop's inferencer runs, and what a crontab line runs: encode, (index), mine,
measure on dev, publish. It calls the same stages that a person would chain by hand, so it makes the
same artifacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import orjson

from ance_cli.call import Call
from ance_cli.config import (
    EncodeConfig,
    FollowConfig,
    IndexConfig,
    RefreshConfig,
    SearchConfig,
)
from ance_cli.encoding.encode import encode
from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem
from ance_cli.evaluation.evaluate import evaluate_runs
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Dataset, read_answers
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.ledgers import Switch, read_ledger_as
from ance_cli.formats.manifest import Plan, read_manifest
from ance_cli.formats.retention import prune
from ance_cli.formats.run_folder import REFRESH, Pointer, RunFolder, compare_settings
from ance_cli.formats.summary import Clock, Summary, summary_of
from ance_cli.loop.drift import probe_generation, read_probe
from ance_cli.loop.integrity import damaged_parts, negatives_to_compare
from ance_cli.loop.probe import overlap
from ance_cli.mining.candidate_filters import teacher_inputs
from ance_cli.mining.mine import mine
from ance_cli.mining.mining_job import MiningFiles, shares_of
from ance_cli.mining.mix import ANN, PREVIOUS
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource
from ance_cli.retrieval.index import index
from ance_cli.retrieval.search import queries_of_split, search

NO_DEV = "none"


def refresh(
    output: Path,
    given: Mapping[str, Any] | None = None,
    gpus: str = "all",
    keep: int = FollowConfig.keep,
    ray: str | None = None,
    call: Call = Call(),
) -> Summary:
    """Make and publish a generation from the run's newest checkpoint.

    `given` holds the `RefreshConfig` fields that the caller set; the first refresh fixes them for
    the run, later ones may leave them out. Up to date where the published generation is of the
    newest checkpoint already. A half-made generation of the same checkpoint is continued, one of an
    older checkpoint abandoned. Of the `keep` newest generations everything is kept, of older ones
    all but the large parts. `ray` names a Ray cluster that encodes and searches (an index is
    searched here).
    """
    run = RunFolder(output)
    dataset = run.dataset()
    config = _settings(run, dataset, dict(given or {}), call)
    step, folder, published = _standing(run)
    if not call.force and (done := _generation_of(run, published, step)):
        return summary_of(read_manifest(done, "generation"), done, up_to_date=True)
    if call.dry_run:
        return {"output": str(run.path), "kind": "generation", "dry_run": True,
                "checkpoint_step": step, **asdict(config)}  # fmt: skip

    with lease.hold(run.lease("inferencer"), f"a generation of {output}"):
        step, folder, published = _standing(run)  # as it is now that nobody else can publish
        number = published.generation + 1 if published else 1
        checkpoint = Checkpoint(folder)
        shaped_by = {**asdict(config), "checkpoint_step": step}
        del shaped_by["teacher"]  # among the inputs, by content
        plan = Plan(
            "generation",
            run.generation(number).path,
            shaped_by,
            {
                "query_tower": checkpoint.tower_hash("query"),
                "passage_tower": checkpoint.tower_hash("passage"),
                "dataset": dataset.fingerprint("corpus", "queries", "qrels"),
                **teacher_inputs(config),
            },
            {"gpus": gpus, "checkpoint": str(folder)},
        )
        made: dict[str, Any] | None = None
        if plan.output.exists():  # whole, but a kill came before the pointer was moved
            made = read_manifest(plan.output, "generation")
            if made["fingerprint"] != plan.fingerprint:
                atomic.remove(plan.output)
                made = None
        if made is None:
            run.event("inferencer", "refresh started", generation=number, checkpoint_step=step)
            try:
                made = _make(
                    run, plan, checkpoint, dataset, config, gpus, ray, published, call,
                )  # fmt: skip
            except ResourceExhausted:
                half_made = GenerationFolder(plan.partial)
                # made in one piece: the trainer needs the room
                for part in (half_made.index, half_made.candidates):
                    atomic.remove(atomic.partial_name(part))
                raise
        _point_to_best(run, config)
        run.publish(number, step, plan.output)
        run.event("inferencer", "generation published", generation=number, checkpoint_step=step)
        prune(run, keep)
        return summary_of(made, plan.output, up_to_date=False)


def _standing(run: RunFolder) -> tuple[int, Path, Pointer | None]:
    """Step and folder of the newest checkpoint, and the published generation."""
    newest = run.newest_checkpoint()
    if newest is None:
        raise BadInput(f"{run.checkpoints}: there is no whole checkpoint in the run")
    return *newest, run.published()


def _generation_of(run: RunFolder, published: Pointer | None, step: int) -> Path | None:
    """The published generation's folder, if it is of this checkpoint."""
    if not published or published.checkpoint_step != step:
        return None
    folder = run.published_folder(published).path
    return folder if folder.exists() else None


def _settings(
    run: RunFolder,
    dataset: Dataset,
    given: dict[str, Any],
    call: Call,
) -> RefreshConfig:
    """The run's refresh settings, checked and fixed by the first call.

    What makes a positive, and the seed, are the run's own.
    """
    path = run.path / REFRESH
    if run.has_refresh_settings and not call.force:
        found = run.refresh_settings()
        config = _config_of(path, found)
        compare_settings(
            path,
            found,
            _as_kept(found, given),
            "leave them out, or fix others for the run with ance refresh --force",
        )
        return config
    identity = run.read().identity
    before = run.refresh_settings() if run.has_refresh_settings else {}
    own = {name: identity[name] for name in ("min_rel", "seed")}
    config = _config_of(path, {**before, **given, **own})
    _check_mining(config, dataset)
    if config.index_factory and (newest := run.newest_checkpoint()):
        from ance_cli.retrieval.faiss_index import new_index

        new_index(Checkpoint(newest[1]).dim, config.index_factory)
    if config.dev_split != NO_DEV:
        from ance_cli.evaluation.measures import parse_measures

        parse_measures(config.measures)
        try:
            dev = replace(dataset, qrels=labels_beside(dataset.need("qrels"), config.dev_split))
        except BadInput:
            if "dev_split" in given:
                raise
            call.reporter.warn(
                "the dataset has no dev split: nothing will be measured at a refresh"
            )
            config = replace(config, dev_split=NO_DEV)
        else:
            queries_of_split(dev)
    if not call.dry_run:
        run.write_settings(REFRESH, asdict(config))
    return config


def _config_of(path: Path, settings: dict[str, Any]) -> RefreshConfig:
    if strange := settings.keys() - {field.name for field in fields(RefreshConfig)}:
        raise BadInput(
            f"{path}: {min(strange)!r} is no setting of a refresh",
            hint="take it out, or remove the file and give the settings again",
        )
    return RefreshConfig(**settings)


def _as_kept(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The given settings in the form in which `refresh.json` keeps them."""
    config = asdict(RefreshConfig(**{**found, **given}))
    return {name: config[name] for name in given}


def _check_mining(config: RefreshConfig, dataset: Dataset) -> None:
    """Refuse now what mining would refuse once the corpus is encoded."""
    shares = shares_of(config, exact=config.index_factory is None)
    if config.negatives and PREVIOUS in shares and ANN not in shares:
        raise UsageProblem(
            f"--mix {config.mix}: previous draws from what the generation before ranked, and "
            "without ann none of them ranks anything",
            hint="mix ann in: --mix ann:0.5,previous:0.5",
        )
    if config.answers:
        read_answers(dataset.need("queries"))
    teacher_inputs(config)


def labels_beside(qrels: Path, split: str) -> Path:
    """The labels of another split, in the folder of `qrels`."""
    for ending in (".tsv", ".tsv.gz", ".tsv.zst", ".txt"):
        path = qrels.with_name(f"{split}{ending}")
        if path.exists():
            return path
    raise BadInput(
        f"{qrels.with_name(f'{split}.tsv')}: no such split",
        hint=f"name another, or --dev-split {NO_DEV}",
    )


def _make(
    run: RunFolder,
    plan: Plan,
    checkpoint: Checkpoint,
    dataset: Dataset,
    config: RefreshConfig,
    gpus: str,
    ray: str | None,
    published: Pointer | None,
    call: Call,
) -> dict[str, Any]:
    """Fill the generation's folder stage by stage and publish it whole."""
    made = GenerationFolder(plan.open_partial(call.force, abandon_other=True))
    call = replace(call, force=False)  # its parts are made once
    compute = EncodeConfig(dtype=config.encode_dtype, gpus=gpus, ray=ray)
    for part in damaged_parts(made):
        call.reporter.warn(f"{part}: was damaged since an earlier call made it: it is made again")
        run.event("inferencer", "damaged part dropped", part=str(part.relative_to(run.path)))
        atomic.remove(part)
    clock = Clock()

    with clock("encode"):
        encode(checkpoint, dataset, made.embeddings, compute, call=call)
    source = VectorSource(made.embeddings, "embeddings")
    if config.index_factory:
        with clock("index"):
            index(made.embeddings, made.index, IndexConfig(factory=config.index_factory),
                  call=call)  # fmt: skip
        source = VectorSource(made.index, "index")
        compute = replace(compute, ray=None)  # an index is not searched in parts
    before = run.published_folder(published) if published else None
    previous = before.candidates if before and PREVIOUS in shares_of(config, True) else None
    with clock("mine"):
        mined = mine(
            checkpoint,
            dataset,
            source,
            MiningFiles(
                made.negatives,
                earlier=negatives_to_compare(before, call.reporter),
                candidates=made.candidates,
                previous=previous if previous and previous.exists() else None,
                bm25=run.inputs / "bm25",
            ),
            config,
            compute,
            call,
        )
    with clock("probe"):
        ranked = probe_generation(
            checkpoint, dataset, made, Embeddings(made.embeddings), config.seed, compute
        )
        probed = read_probe(before) if before else None
    measures = {}
    if config.dev_split != NO_DEV:
        with clock("measure"):
            measures = _measure(checkpoint, dataset, source, made, config, compute, call)
    atomic.sweep(made.path, "partial", "removed", "lease")
    step = plan.shaped_by["checkpoint_step"]
    now = max(run.last_logged_step(), step)
    stats = {
        "checkpoint_step": step,
        "age": now - step,
        "probe_overlap": round(overlap(probed.top, ranked), 4) if probed else None,
        "consumed": _consumed(run, published, now, mined),
        "seconds": {**clock.seconds, "all": round(sum(clock.seconds.values()), 2)},
        "dev": measures,
        "audit": mined["audit"],
    }
    return plan.publish_folder({}, stats)


def _consumed(run: RunFolder, published: Pointer | None, step: int, mined: Summary) -> float | None:
    """Pairs trained on the published generation so far, as a multiple of the pairs there are."""
    begun = [switch for switch in read_ledger_as(run.switches, Switch)
             if published and switch.generation == published.generation]  # fmt: skip
    identity = run.read().identity
    if not begun:
        return None
    pairs = identity["batch_size"] * identity["devices"] * identity["accumulation"]
    total = mined["audit"]["pairs"]
    return round((step - begun[-1].step) * pairs / total, 4) if total else None


def _measure(
    checkpoint: Checkpoint,
    dataset: Dataset,
    source: VectorSource,
    made: GenerationFolder,
    config: RefreshConfig,
    compute: EncodeConfig,
    call: Call,
) -> dict[str, float]:
    """Dev measures from the generation's own vectors, kept in `dev.json` beside the run."""
    qrels = labels_beside(dataset.need("qrels"), config.dev_split)
    dev = replace(dataset, qrels=qrels, split=config.dev_split)
    search(
        queries_of_split(dev),
        made.dev_run,
        dataset.corpus,
        checkpoint,
        source,
        SearchConfig(depth=config.dev_depth, probes=config.probes),
        compute,
        call=call,
    )
    found = evaluate_runs([made.dev_run], qrels, config.measures)["runs"][0]["measures"]
    atomic.write_bytes(made.dev, orjson.dumps(found, option=orjson.OPT_INDENT_2))
    means = {name: round(value["mean"], 4) for name, value in found.items()}
    call.reporter.say(
        f"{config.dev_split}: " + "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    )
    return means


def _point_to_best(run: RunFolder, config: RefreshConfig) -> None:
    """`best` names the checkpoint with the highest first dev measure, among the generations that
    were measured in the way that `config` says."""
    way = {name: getattr(config, name) for name in ("dev_split", "measures", "dev_depth")}
    scored = []
    for generation in run.all_generations():
        manifest = generation.read_manifest()
        values = list(manifest["stats"]["dev"].values())
        if values and {name: manifest["shaped_by"].get(name) for name in way} == way:
            scored.append((values[0], -manifest["stats"]["checkpoint_step"]))
    if scored:
        folder = run.checkpoint(-max(scored)[1]).path
        if folder.exists():
            atomic.point(run.best, folder)
