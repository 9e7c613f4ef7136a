"""`ance loop`: a run's trainer and inferencer, side by side or in turn, each as the stage command
that a person would type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import FollowConfig, LoopConfig, RefreshConfig
from ance_cli.config.presets import train_config
from ance_cli.config.setting import flag_of
from ance_cli.errors import UsageProblem
from ance_cli.formats.ledgers import FOLLOW
from ance_cli.formats.retention import has_room, prune
from ance_cli.formats.run_folder import LOOP, RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.loop.devices import Devices, place_devices
from ance_cli.loop.disk import check_disk
from ance_cli.loop.processes import ManagedProcess, run_processes
from ance_cli.loop.supervisor import cycle, run_stage
from ance_cli.models.ray_cluster import check_gpus
from ance_cli.progress import Reporter
from ance_cli.training.segments import state_step


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """`{"refresh_every": 5}` -> `["--refresh-every", "5"]`; True is the bare flag, None and False
    are left out."""
    flags = []
    for name, value in values.items():
        if value is not None and value is not False:
            flags.append(flag_of(name))
            if value is not True:
                flags.append(str(value))
    return flags


@dataclass(frozen=True)
class Given:
    """What the caller typed, by the command that it goes to.

    `training` makes the run (data, checkpoint, recipe), `segment` is for each call that trains,
    `refreshing` for each refresh.
    """

    training: Mapping[str, Any]
    segment: Mapping[str, Any]
    refreshing: Mapping[str, Any]


def loop(
    output: Path,
    config: LoopConfig = LoopConfig(),
    follow: FollowConfig = FollowConfig(),
    given: Given = Given({}, {}, {}),
    max_staleness: int = 0,
    gpus: str = "all",
    train_gpus: str | None = None,
    infer_gpus: str | None = None,
    ray: str | None = None,
    call: Call = Call(),
) -> Summary:
    """Train `config.segments` times `config.refresh_every` steps, with a refresh before the first
    and one from the checkpoint after each.

    With devices for both sides the trainer never waits for a refresh; with one device they take
    turns. `ray` names a Ray cluster in which the refreshes encode and search. `call.threads`
    bounds those of each child; 0 = every core. The same call continues an interrupted loop.
    """
    run = RunFolder(output)
    last_step = config.segments * config.refresh_every
    if not run.exists and not {"data", "ckpt"} <= set(given.training):
        raise UsageProblem(
            f"{output} is a new run: it needs --data and --ckpt",
            hint="ance loop --data DATASET --split train --ckpt CHECKPOINT -o RUN",
        )
    if ray:
        check_gpus("--infer-gpus", infer_gpus or "all")
    devices = place_devices(config.mode, config.split, gpus, train_gpus, infer_gpus, bool(ray))
    _check(given, config, max_staleness, last_step)
    commands = _Commands(output, config, follow, given, max_staleness, devices, ray, call)
    if call.dry_run:
        disk = commands.check_disk(run)
        return {"output": str(output), "kind": "run", "dry_run": True, "mode": devices.mode,
                "last_step": last_step, "commands": commands.first_cycle(run),
                "disk_bytes": disk}  # fmt: skip

    with run.held("supervisor"):
        before = _finished(run, last_step)
        run_stage(lambda: commands.prepare(last_step), config.max_restarts, run, call.reporter)
        settings = {**asdict(config), **asdict(follow), "mode": devices.mode,
                    "max_staleness": max_staleness, "last_step": last_step}  # fmt: skip
        run.write_settings(LOOP, settings)
        reason = None
        if not before:
            commands.check_disk(run)
            run.event("supervisor", "loop started", last_step=last_step, mode=devices.mode)
            together = _side_by_side if devices.mode == "async" else _in_turn
            reason = together(run, config, commands, last_step, call.reporter)
            run.event("supervisor", "loop finished", step=_step(run), reason=reason)
        prune(run, follow.keep)  # a kill may have cut short what the last refresh pruned
    return {
        "output": str(output),
        "kind": "run",
        "up_to_date": before,
        "mode": devices.mode,
        "step": _step(run),
        **({"stopped_early": reason} if reason else {}),
        "generations": generation_table(run),
    }


@dataclass(frozen=True)
class _Commands:
    """The command lines of a loop's children."""

    output: Path
    config: LoopConfig
    follow: FollowConfig
    given: Given
    max_staleness: int
    devices: Devices
    ray: str | None
    call: Call

    def prepare(self, last_step: int) -> list[str]:
        """Make the run, or check that it is the one that is meant."""
        flags = {"total_steps": last_step, **self.given.training, **self._running}
        return ["train-segment", "-o", str(self.output), "--steps", "0", "--quiet",
                *as_flags(flags)]  # fmt: skip

    @property
    def _running(self) -> dict[str, Any]:
        devices = self.devices
        return {**self.given.segment, "gpus": devices.train_gpus,
                "threads": self._threads(devices.train_cpus)}  # fmt: skip

    @property
    def _tone(self) -> list[str]:
        return ["--quiet"] if self.call.quiet else []

    @property
    def _refreshing(self) -> dict[str, Any]:
        devices = self.devices
        return {**self.given.refreshing, "gpus": devices.infer_gpus, "ray": self.ray,
                "threads": self._threads(devices.infer_cpus)}  # fmt: skip

    def _threads(self, cpus: frozenset[int]) -> int | None:
        """Threads of a child that is pinned to some CPUs (empty = to none); None = every core."""
        return min(filter(None, (self.call.threads, len(cpus))), default=None)

    def refresh(self) -> list[str]:
        """One refresh."""
        flags = {**self._refreshing, "keep": self.follow.keep}
        return ["refresh", str(self.output), *as_flags(flags), *self._tone]

    def infer(self, last_step: int) -> list[str]:
        """The inferencer of an asynchronous loop."""
        follow = {**asdict(self.follow), "until": last_step, "follow": True}
        flags = {**self._refreshing, **follow}
        return ["refresh", str(self.output), *as_flags(flags), *self._tone]

    def train(self, negatives: str | None, steps: int, force: bool = False) -> list[str]:
        """One segment on a file of negatives."""
        flags = {"steps": steps, **self._running, "force": force}
        named = [negatives] if negatives else []
        return ["train-segment", *named, "-o", str(self.output), *as_flags(flags), *self._tone]

    def train_on(self, steps: int, force: bool) -> list[str]:
        """The trainer of an asynchronous loop."""
        follow = {"follow": True, "checkpoint_every": self.config.refresh_every,
                  "max_staleness": self.max_staleness or None}  # fmt: skip
        return [*self.train(None, steps, force), *as_flags(follow)]

    def check_disk(self, run: RunFolder) -> dict[str, int]:
        """What the run will take on disk; warns where there is not enough."""
        given = self.given
        return check_disk(run, self.config, self.follow, given.training, given.segment,
                          given.refreshing, self.call.reporter)  # fmt: skip

    def first_cycle(self, run: RunFolder) -> list[str]:
        """The commands of the first cycle, as one would type them."""
        every, last = self.config.refresh_every, self.config.refresh_every * self.config.segments
        if self.devices.mode == "async":
            processes = [self.train_on(last, False), self.infer(last)]
        else:
            first = str(run.generation(1).negatives)
            processes = [self.refresh(), self.train(first, every)]
        return [shlex.join(["ance", *words]) for words in (self.prepare(last), *processes)]


def _in_turn(
    run: RunFolder, config: LoopConfig, commands: _Commands, last_step: int, reporter: Reporter
) -> str | None:
    """The synchronous loop; returns why it ended early, None where it did not."""

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

    return cycle(run, last_step, config.refresh_every, refresh, train,
                 lambda: out_of_patience(run, config.patience))  # fmt: skip


def _side_by_side(
    run: RunFolder, config: LoopConfig, commands: _Commands, last_step: int, reporter: Reporter
) -> str | None:
    """The asynchronous loop; returns why it ended early, None where it did not."""
    if reason := out_of_patience(run, config.patience):
        return reason

    def train() -> list[str] | None:
        steps, force = _rest_of_training(run, last_step)
        return commands.train_on(steps, force) if steps > 0 else None

    devices = commands.devices
    restarts = config.max_restarts
    trainer = ManagedProcess(
        "trainer",
        train,
        devices.train_cpus,
        restarts,
        run,
        reporter,
        endures=lambda: not has_room(run),
    )
    inferencer = ManagedProcess(
        "inferencer",
        lambda: commands.infer(last_step),
        devices.infer_cpus,
        restarts,
        run,
        reporter,
        endures=lambda: not trainer.is_done,
    )
    processes = (trainer, inferencer)
    return run_processes(processes, lambda: out_of_patience(run, config.patience))


def _rest_of_training(run: RunFolder, last_step: int) -> tuple[int, bool]:
    """Steps of the trainer's next call, 0 and less where none is left, and whether it begins a new
    segment although the run has others.

    An unfinished segment that ends at `last_step` is gone on with. One that ends elsewhere (an
    earlier call asked for more or fewer segments) is replaced from the newest state on.

    Raises `UsageProblem` where the run went past `last_step` without a checkpoint there or later:
    the inferencer would wait for it for ever.
    """
    last = run.unfinished_segment()
    if last and last.input == FOLLOW and last.start_step + last.steps == last_step:
        return last.steps, False
    at, newest = state_step(run), _step(run)
    if newest < last_step <= at:
        raise UsageProblem(
            f"{run.path}: stands at step {at}, past the {last_step} steps of --segments times "
            f"--refresh-every, and its newest checkpoint is of step {newest}",
            hint="ask for more steps than it stands at: the next checkpoint lies ahead",
        )
    return last_step - at, run.segments.exists()


def out_of_patience(run: RunFolder, patience: int) -> str | None:
    """Why the run should stop: the dev measure has not risen for `patience` generations."""
    if not patience:
        return None
    values = [row["value"] for row in generation_table(run) if row["value"] is not None]
    best = max(range(len(values)), key=values.__getitem__, default=0)
    if len(values) - 1 - best < patience:
        return None
    return f"no generation was better than number {best + 1} of {len(values)} on dev"


def _check(given: Given, config: LoopConfig, max_staleness: int, last_step: int) -> None:
    """Refuse now what a stage would refuse hours later."""
    if given.training.get("total_steps", last_step) < last_step:
        raise UsageProblem(
            f"--total-steps {given.training['total_steps']} is less than the {last_step} steps of "
            "--segments times --refresh-every"
        )
    if 0 < max_staleness < config.refresh_every:
        raise UsageProblem(
            f"--max-staleness {max_staleness} is less than --refresh-every {config.refresh_every}: "
            "fresher negatives come from a newer checkpoint"
        )
    if given.training.get("distill") and not given.refreshing.get("teacher"):
        raise UsageProblem(
            f"--distill {given.training['distill']} learns from a teacher's scores",
            hint="name the cross-encoder that gives them: --teacher DIR",
        )
    kept = given.refreshing.get("negatives", RefreshConfig.negatives)
    per_positive = train_config(given.training.get("preset"), given.training).negatives_per_positive
    if per_positive > kept:
        raise UsageProblem(
            f"--negatives-per-positive {per_positive} is more than the {kept} that --negatives "
            "keeps for a pair"
        )


def _step(run: RunFolder) -> int:
    newest = run.newest_checkpoint()
    return newest[0] if newest else 0


def _finished(run: RunFolder, last_step: int) -> bool:
    published = run.published() if run.exists else None
    return published is not None and published.checkpoint_step >= last_step


def generation_table(run: RunFolder) -> list[dict[str, Any]]:
    """One row a generation: number, checkpoint step, age when published, seconds, dev measures;
    `value` is the first of them."""
    rows = []
    for generation in run.all_generations():
        stats = generation.read_manifest()["stats"]
        rows.append(
            {
                "generation": generation.number,
                "checkpoint_step": stats["checkpoint_step"],
                "age": stats["age"],
                "seconds": stats["seconds"]["all"],
                "probe_overlap": stats["probe_overlap"],
                "value": next(iter(stats["dev"].values()), None),
                **stats["dev"],
            }
        )
    return rows
