"""`ance loop`: trains and refreshes a run, at the same time or alternating, through the commands
that a user would type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from ance_cli.call import Call
from ance_cli.config import FollowConfig, LoopConfig, LoopDevices, RefreshConfig
from ance_cli.config.presets import train_config
from ance_cli.errors import UsageProblem
from ance_cli.formats.retention import has_room, prune
from ance_cli.formats.run_folder import LOOP, REFRESHER, SUPERVISOR, TRAINER, RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.loop.async_processes import Child, ManagedProcess, run_processes
from ance_cli.loop.commands import Commands, check_names, refresh_settings
from ance_cli.loop.cycle import cycle
from ance_cli.loop.devices import num_devices, place_devices
from ance_cli.loop.disk import check_disk, mining_of, start_of
from ance_cli.loop.guard import fallen
from ance_cli.loop.refresh_config import fixed_config
from ance_cli.loop.status import status
from ance_cli.loop.status_schema import explained
from ance_cli.loop.supervisor import run_stage
from ance_cli.models.ray_cluster import check_gpus
from ance_cli.training.segments import state_step
from ance_cli.training.sizing import DataSample, Workload, with_lengths


def loop(
    output: Path,
    config: LoopConfig = LoopConfig(),
    follow: FollowConfig = FollowConfig(),
    given: Mapping[str, Any] | None = None,
    devices: LoopDevices = LoopDevices(),
    call: Call = Call(),
) -> Summary:
    """Train `config.segments` times `config.refresh_every` steps, with a refresh before the first
    step and one from the checkpoint after each segment.

    `given` holds the settings of the run, its training and its refreshes that the caller set: the
    flags of `ance train-segment` and `ance refresh` by their field names, `data` and `ckpt` among
    them. If training and refreshes have devices of their own, the trainer never waits for a
    refresh; on one device they alternate. `devices.ray` names a Ray cluster in which the refreshes
    encode and search; what they compute here is for `devices.local_gpus`, by default none.
    `call.threads` bounds the threads of each child; 0 = every core. An interrupted loop continues
    when it is called again.
    """
    run = RunFolder(output)
    commands = _plan(run, config, follow, given or {}, devices, call)
    if call.dry_run:
        return _dry_run(commands)
    with run.held(SUPERVISOR):
        is_finished = _is_finished(run, config.last_step)
        _prepare(commands)
        reason = None if is_finished else _train_and_refresh(commands)
        prune(run, follow.keep)  # a kill may have cut short what the last refresh pruned
    return {
        "output": str(output),
        "kind": "run",
        "up_to_date": is_finished,
        "mode": commands.devices.mode,
        "step": _step(run),
        **({"stopped_early": reason} if reason else {}),
        **explained(status(output)),
        "generations": generation_table(run),
    }


def _plan(
    run: RunFolder,
    config: LoopConfig,
    follow: FollowConfig,
    given: Mapping[str, Any],
    devices: LoopDevices,
    call: Call,
) -> Commands:
    """The commands of the loop; refuses now what a child would refuse hours later."""
    if not run.exists and not {"data", "ckpt"} <= given.keys():
        raise UsageProblem(
            f"{run.path} is a new run: it needs --data and --ckpt",
            hint="ance loop --data DATASET --split train --ckpt CHECKPOINT -o RUN",
        )
    check_names(given)
    if devices.ray:
        check_gpus("--infer-gpus", devices.infer_gpus or "all")
    placed = place_devices(config.mode, config.split, devices)
    _check_recipe(given, config.last_step)
    _check_guard(run, config, given)
    return Commands(run, config, follow, given, placed, call)


def _check_recipe(given: Mapping[str, Any], last_step: int) -> None:
    """Refuse settings of training and of refreshes that do not fit together."""
    if given.get("total_steps", last_step) < last_step:
        raise UsageProblem(
            f"--total-steps {given['total_steps']} is less than the {last_step} steps of "
            "--segments times --refresh-every"
        )
    if given.get("distill") and not given.get("teacher"):
        raise UsageProblem(
            f"--distill {given['distill']} learns from a teacher's scores",
            hint="name the cross-encoder that computes them: --teacher DIR",
        )
    kept = given.get("negatives", RefreshConfig.negatives)
    per_positive = train_config(given.get("preset"), given).negatives_per_positive
    if per_positive > kept:
        raise UsageProblem(
            f"--negatives-per-positive {per_positive} is more than the {kept} that --negatives "
            "keeps for a pair"
        )


def _check_guard(run: RunFolder, config: LoopConfig, given: Mapping[str, Any]) -> None:
    """Refuse to stop at a fall that nothing measures."""
    fixed = run.refresh_settings() if run.has_refresh_settings else {}
    if config.on_guard == "stop" and not (given.get("guard") or fixed.get("guard")):
        raise UsageProblem(
            "--on-guard stop needs --guard", hint="name a general collection: --guard DIR"
        )


def _dry_run(commands: Commands) -> Summary:
    return {
        "output": str(commands.run.path),
        "kind": "run",
        "dry_run": True,
        "mode": commands.devices.mode,
        "last_step": commands.config.last_step,
        "plan": _reckoned(commands),
        "commands": commands.first_cycle(),
        "disk_bytes": _check_disk(commands),
    }


def _reckoned(commands: Commands) -> dict[str, Any]:
    """What the loop comes to: its training, and the encoding of its refreshes; loads no weights."""
    run, config, given, call = commands.run, commands.config, commands.given, commands.call
    dataset, recipe, start = start_of(run, given)
    ranks = num_devices(commands.devices.train_gpus) or given.get("cpu_workers", 1)
    if not run.exists:
        recipe = replace(recipe, devices=ranks)
    sample = DataSample(dataset, recipe.min_rel, call.skipped)
    recipe = with_lengths(recipe, start, sample)
    lengths = {name: getattr(recipe, name) for name in ("query_length", "passage_length")}
    work = Workload(start.with_settings(**lengths), recipe, sample)
    if not run.exists:
        work.warn(config.last_step, call.reporter)
    return {
        **work.facts(config.last_step),
        "preset": given.get("preset"),
        "depth": mining_of(run, given).depth,
        "refreshes": config.segments + 1,
        **_minutes(commands, work, ranks),
    }


def _minutes(commands: Commands, work: Workload, ranks: int) -> dict[str, Any]:
    """The minutes of training and, without a cluster, of encoding."""
    from ance_cli.training.rate import reckoned_rate

    config, devices = commands.config, commands.devices
    try:
        rate = reckoned_rate(devices.train_gpus, work.config.dtype)
    except UsageProblem:
        return {"based_on": "the GPUs are not in this machine: the minutes are unknown"}
    training = rate.minutes(config.last_step * work.step_flops, ranks)
    encoding = rate.minutes(
        (config.segments + 1) * work.encode_flops, num_devices(devices.infer_gpus) or 1
    )
    minutes = {"training": training, **({} if devices.ray else {"encoding": encoding})}
    return {"minutes": minutes, "based_on": rate.basis}


def _check_disk(commands: Commands) -> dict[str, int]:
    """The bytes that the run will need; warns if they do not fit on the disk."""
    config, reporter = commands.config, commands.call.reporter
    return check_disk(commands.run, config, commands.follow, commands.given, reporter)


def _prepare(commands: Commands) -> None:
    """Make the run, or check that the existing run has these settings; write `loop.json`, which
    keeps its content if the loop is refused."""
    run, config = commands.run, commands.config
    run_stage(commands.prepare, config.max_restarts, run, commands.call.reporter)
    if run.has_refresh_settings:
        fixed_config(run, refresh_settings(commands.given))
    if commands.devices.mode == "async" and not _is_finished(run, config.last_step):
        _rest_of_training(run, config.last_step)
    chosen = {"mode": commands.devices.mode, "last_step": config.last_step}
    run.write_settings(LOOP, {**asdict(config), **asdict(commands.follow), **chosen})


def _train_and_refresh(commands: Commands) -> str | None:
    """The loop itself; returns why it stopped early, None if it did not."""
    run, mode, last_step = commands.run, commands.devices.mode, commands.config.last_step
    _check_disk(commands)
    run.event(SUPERVISOR, "loop started", last_step=last_step, mode=mode)
    reason = _at_the_same_time(commands) if mode == "async" else _alternating(commands)
    run.event(SUPERVISOR, "loop finished", step=_step(run), reason=reason)
    return reason


def _alternating(commands: Commands) -> str | None:
    """The synchronous loop; returns why it stopped early, None if it did not."""
    run, config, reporter = commands.run, commands.config, commands.call.reporter

    def child(command: Callable[[], list[str]]) -> None:
        run_stage(command, config.max_restarts, run, reporter)

    def refresh() -> None:
        reporter.say(f"refresh from checkpoint step {_step(run)}")
        child(commands.refresh)

    def train(negatives: Path, steps: int) -> None:
        reporter.say(f"training {steps} steps from step {_step(run)} on {negatives}")

        def command() -> list[str]:
            last = run.unfinished_segment()
            return commands.train(str(negatives), steps, bool(last and not last.negatives))

        child(command)

    return cycle(run, config.last_step, config.refresh_every, refresh, train,
                 lambda: _reason_to_stop(run, config))  # fmt: skip


def _at_the_same_time(commands: Commands) -> str | None:
    """The asynchronous loop; returns why it stopped early, None if it did not."""
    run, config, devices = commands.run, commands.config, commands.devices
    if reason := _reason_to_stop(run, config):
        return reason

    def train() -> list[str] | None:
        rest = _rest_of_training(run, config.last_step)
        return commands.train_on_generations(*rest) if rest.steps > 0 else None

    def manage(child: Child) -> ManagedProcess:
        return ManagedProcess(child, config.max_restarts, run, commands.call.reporter)

    trainer = manage(Child(TRAINER, train, devices.train_cpus, lambda: not has_room(run)))
    refresher = manage(
        Child(REFRESHER, commands.refresh_daemon, devices.infer_cpus, lambda: not trainer.is_done)
    )
    return run_processes((trainer, refresher), lambda: _reason_to_stop(run, config))


class _Rest(NamedTuple):
    """What the trainer has left to do."""

    steps: int
    """Steps of its next call; 0 or less if none is left."""
    begins_segment: bool
    """Whether that call begins a new segment although the run has others."""


def _rest_of_training(run: RunFolder, last_step: int) -> _Rest:
    """What the trainer of an asynchronous loop has left to do.

    An unfinished segment that ends at `last_step` is continued. A segment that ends at another step
    (an earlier call asked for more or fewer segments) is replaced from the newest state on.

    Raises `UsageProblem` if the run is past `last_step` and has no checkpoint there or later: the
    refresh daemon would wait for that checkpoint for ever.
    """
    last = run.unfinished_segment()
    if last and last.follows and last.end_step == last_step:
        return _Rest(last.steps, False)
    at, newest = state_step(run), _step(run)
    if newest < last_step <= at:
        raise UsageProblem(
            f"{run.path}: is at step {at}, past the {last_step} steps of --segments times "
            f"--refresh-every, and its newest checkpoint is of step {newest}",
            hint=f"raise --segments, so that the loop ends after step {at}",
        )
    return _Rest(last_step - at, run.segments.exists())


def _reason_to_stop(run: RunFolder, config: LoopConfig) -> str | None:
    guarded = fallen(run) if config.on_guard == "stop" else None
    return guarded or out_of_patience(run, config.patience)


def out_of_patience(run: RunFolder, patience: int) -> str | None:
    """Why the run should stop: the dev measure has not risen for `patience` generations."""
    if not patience:
        return None
    values = [row["value"] for row in generation_table(run) if row["value"] is not None]
    best = max(range(len(values)), key=values.__getitem__, default=0)
    if len(values) - 1 - best < patience:
        return None
    return f"no generation was better than number {best + 1} of {len(values)} on dev"


def _step(run: RunFolder) -> int:
    newest = run.newest_checkpoint()
    return newest[0] if newest else 0


def _is_finished(run: RunFolder, last_step: int) -> bool:
    published = run.published() if run.exists else None
    return published is not None and published.checkpoint_step >= last_step


def generation_table(run: RunFolder) -> list[dict[str, Any]]:
    """One row per generation: number, checkpoint step, age when it was published, seconds and dev
    measures; `value` is the first measure. `guard` is the same measure on the guard, if the run has
    one."""
    rows = []
    for generation in run.all_generations():
        stats = generation.read_manifest()["stats"]
        guard = stats.get("guard")
        rows.append(
            {
                "generation": generation.number,
                "checkpoint_step": stats["checkpoint_step"],
                "age": stats["age"],
                "seconds": stats["seconds"]["all"],
                "probe_overlap": stats["probe_overlap"],
                "value": next(iter(stats["dev"].values()), None),
                **stats["dev"],
                **({"guard": next(iter(guard.values()))} if guard else {}),
            }
        )
    return rows
