"""`ance refresh`: one refresh of a run, from its newest checkpoint to published negatives.

The loop and a crontab line both run this command. It calls the stages that a user would chain by
hand, so that it makes the same artifacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import FollowConfig, RefreshConfig, RefreshDevices, shaped_by
from ance_cli.errors import BadInput, ResourceExhausted
from ance_cli.formats import atomic, lease
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.plan import Plan
from ance_cli.formats.records import with_hash
from ance_cli.formats.retention import prune
from ance_cli.formats.run_folder import REFRESH, REFRESHER, RunFolder
from ance_cli.formats.summary import Summary, summary_of
from ance_cli.loop.guard import check_same_guard, guard_inputs, measured_alike
from ance_cli.loop.new_generation import NewGeneration, Start, fill_and_publish
from ance_cli.loop.refresh_config import refresh_config
from ance_cli.mining.text_filters import teacher_inputs
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import need_local_gpus


def refresh(
    output: Path,
    given: Mapping[str, Any] | None = None,
    devices: RefreshDevices = RefreshDevices(),
    keep: int = FollowConfig.keep,
    call: Call = Call(),
) -> Summary:
    """Make and publish a generation from the run's newest checkpoint.

    `given` holds the `RefreshConfig` fields that the caller set; the first refresh fixes them for
    the run, and later refreshes may leave them out. Does nothing if the published generation is
    from the newest checkpoint. Continues an unfinished generation of the same checkpoint, and
    drops one of an older checkpoint. Removes the large parts of all but the `keep` newest
    generations. `devices.ray` names a Ray cluster that encodes and searches; queries, the probe,
    the dev measures and an index are for `devices.local_gpus`.
    """
    need_local_gpus(devices.local_gpus)
    run = RunFolder(output)
    dataset = run.dataset()
    settings = run.refresh_settings() if run.has_refresh_settings else None
    config = refresh_config(run, dataset, dict(given or {}), call)
    start = _start(run)
    if settings is not None and not call.force and (done := _generation_of(run, start)):
        return summary_of(read_manifest(done, "generation"), done, up_to_date=True)
    if call.dry_run:
        return {"output": str(run.path), "kind": "generation", "dry_run": True,
                "checkpoint_step": start.step, **asdict(config)}  # fmt: skip
    compute = devices.compute(config.encode_dtype)
    with lease.hold(run.lease(REFRESHER), f"a generation of {output}"):
        # again, now that nobody else can write
        if settings != (run.refresh_settings() if run.has_refresh_settings else None):
            config = refresh_config(run, dataset, dict(given or {}), call)
        if settings is None or call.force:
            run.write_settings(REFRESH, with_hash(asdict(config)))
        is_restored = _restore_pointer(run, config, keep)
        start = _start(run)
        new = NewGeneration(run, dataset, config, compute, start, Checkpoint(start.folder))
        plan = _plan(new)
        if config.guard and not call.force:
            check_same_guard(new.before, plan.inputs, config.guard)
        if done := _generation_of(run, start):
            manifest = read_manifest(done, "generation")
            is_this = is_restored and manifest["fingerprint"] == plan.fingerprint
            if is_this or not call.force:
                return summary_of(manifest, done, up_to_date=not is_restored)
        manifest = _make(new, plan, call)
        _publish(run, config, new.number, start.step, keep)
    return summary_of(manifest, plan.output, up_to_date=False)


def _start(run: RunFolder) -> Start:
    newest = run.checked_checkpoint()
    if newest is None:
        raise BadInput(f"{run.checkpoints}: there is no complete checkpoint in the run")
    numbers = [generation.number for generation in run.all_generations()]
    return Start(*newest, run.published(), max(numbers, default=0))


def _generation_of(run: RunFolder, start: Start) -> Path | None:
    """The folder of the published generation, if it is from the newest checkpoint."""
    if not start.published or start.published.checkpoint_step != start.step:
        return None
    folder = run.published_folder(start.published).path
    return folder if folder.exists() else None


def _plan(new: NewGeneration) -> Plan:
    checkpoint, dataset, start = new.checkpoint, new.dataset, new.start
    return Plan(
        "generation",
        new.run.generation(new.number).path,
        {**shaped_by(new.config), "checkpoint_step": start.step},
        {
            "query_tower": checkpoint.tower_hash("query"),
            "passage_tower": checkpoint.tower_hash("passage"),
            "dataset": dataset.fingerprint("corpus", "queries", "qrels"),
            **teacher_inputs(new.config),
            **guard_inputs(new.config),
        },
        {"gpus": new.compute.gpus, "checkpoint": str(start.folder)},
    )


def _restore_pointer(run: RunFolder, config: RefreshConfig, keep: int) -> bool:
    """Publish the newest whole generation if the pointer does not name it: a kill came before the
    pointer was moved, or the file was removed. Returns whether it was published."""
    published = run.published()
    newest = run.newest_whole_generation(after=published.generation if published else 0)
    if newest:
        _publish(run, config, newest.generation, newest.checkpoint_step, keep)
    return newest is not None


def _make(new: NewGeneration, plan: Plan, call: Call) -> dict[str, Any]:
    """Make the generation; returns its manifest."""
    facts = {"generation": new.number, "checkpoint_step": new.start.step}
    new.run.event(REFRESHER, "refresh started", **facts)
    try:
        return fill_and_publish(new, plan, call)
    except ResourceExhausted:
        unfinished = GenerationFolder(plan.partial)
        # each is made in one piece, so nothing is lost, and the trainer needs the room
        for part in (unfinished.index, unfinished.candidates):
            atomic.remove(atomic.partial_name(part))
        raise


def _publish(run: RunFolder, config: RefreshConfig, number: int, step: int, keep: int) -> None:
    """Point the trainer to the generation, and remove what older generations no longer need."""
    _point_to_best(run, config)
    run.publish(number, step, run.generation(number).path)
    run.event(REFRESHER, "generation published", generation=number, checkpoint_step=step)
    prune(run, keep)


def _point_to_best(run: RunFolder, config: RefreshConfig) -> None:
    """Point `best` to the checkpoint with the highest first dev measure, among the generations that
    were measured with the same split, measures and depth as in `config`, and that have not fallen
    on its guard."""
    guard = guard_inputs(config)
    way = {name: getattr(config, name) for name in ("dev_split", "measures", "dev_depth")}
    scored = []
    for generation in run.all_generations():
        if not generation.is_readable:  # a damaged older one must not keep this one from training
            continue
        manifest = generation.read_manifest()
        stats = manifest["stats"]
        values = list(stats["dev"].values())
        if (
            values
            and {name: manifest["shaped_by"].get(name) for name in way} == way
            and measured_alike(manifest, config, guard)
            and (not guard or stats["guard_fall"] <= config.guard_margin)
        ):
            scored.append((values[0], -stats["checkpoint_step"]))
    if scored:
        folder = run.checkpoint(-max(scored)[1]).path
        if folder.exists():
            atomic.point(run.best, folder)
