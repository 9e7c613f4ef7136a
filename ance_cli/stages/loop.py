"""`ance loop`: refresh and train in turn, each as the stage command that a person would type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ance_cli.config import LoopConfig, RefreshConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.run_folder import NEGATIVES, RunFolder
from ance_cli.loop.supervisor import cycle, run_stage
from ance_cli.models.devices import parse_gpus
from ance_cli.progress import Reporter, Silent
from ance_cli.stages.summary import Summary


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """`{"refresh_every": 5}` -> `["--refresh-every", "5"]`; True is the bare flag, None and False
    are left out."""
    flags = []
    for name, value in values.items():
        if value is not None and value is not False:
            flags.append(f"--{name.replace('_', '-')}")
            if value is not True:
                flags.append(str(value))
    return flags


def loop(
    output: Path,
    config: LoopConfig = LoopConfig(),
    training: Mapping[str, Any] | None = None,
    refreshing: Mapping[str, Any] | None = None,
    segment: Mapping[str, Any] | None = None,
    train_gpus: str = "all",
    infer_gpus: str = "all",
    quiet: bool = False,
    dry_run: bool = False,
    reporter: Reporter = Silent(),
) -> Summary:
    """Run `config.segments` segments of `config.refresh_every` steps, with a refresh before each
    and one after the last.

    `training` holds the flags of `train-segment` that make the run (data, checkpoint, recipe),
    `segment` those of each of its calls, `refreshing` those of `refresh`; only what the caller set.
    The same call continues an interrupted loop.
    """
    run = RunFolder(output)
    last_step = config.segments * config.refresh_every
    training, refreshing, segment = training or {}, refreshing or {}, segment or {}
    if not run.exists and not {"data", "ckpt"} <= set(training):
        raise UsageProblem(
            f"{output} is a new run: it needs --data and --ckpt",
            hint="ance loop --data DATASET --split train --ckpt CHECKPOINT -o RUN",
        )
    _check(training, refreshing, last_step, train_gpus, infer_gpus)
    tone = ["--quiet"] if quiet else []
    running = {**segment, "gpus": train_gpus}
    prepare = ["train-segment", "-o", str(output), "--steps", "0", "--quiet",
               *as_flags({"total_steps": last_step, **training, **running})]  # fmt: skip
    refreshed = ["refresh", str(output), *as_flags({**refreshing, "gpus": infer_gpus})]
    if dry_run:
        first = run.generation_at(1) / NEGATIVES
        trained = _training(output, first, config.refresh_every, running)
        commands = [" ".join(["ance", *words]) for words in (prepare, refreshed, trained)]
        return {"output": str(output), "kind": "run", "dry_run": True, "last_step": last_step,
                "commands": commands}  # fmt: skip

    def child(*arguments: str) -> None:
        run_stage([*arguments, *tone], config.max_restarts, run, reporter)

    def refresh() -> None:
        reporter.say(f"refresh from checkpoint step {_step(run)}")
        child(*refreshed)

    def train(negatives: Path, steps: int) -> None:
        reporter.say(f"training {steps} steps from step {_step(run)} on {negatives}")
        child(*_training(output, negatives, steps, running))

    with run.held("supervisor"):
        before = _finished(run, last_step)
        run_stage(prepare, config.max_restarts, run, reporter)
        if not before:
            run.event("supervisor", "loop started", last_step=last_step)
        cycle(run, last_step, config.refresh_every, refresh, train)
        if not before:
            run.event("supervisor", "loop finished", step=last_step)
    return {
        "output": str(output),
        "kind": "run",
        "up_to_date": before,
        "step": _step(run),
        "generations": generation_table(run),
    }


def _training(output: Path, negatives: Path, steps: int, running: Mapping[str, Any]) -> list[str]:
    """The command of one segment."""
    flags = as_flags({"steps": steps, **running})
    return ["train-segment", str(negatives), "-o", str(output), *flags]


def _check(
    training: Mapping[str, Any],
    refreshing: Mapping[str, Any],
    last_step: int,
    train_gpus: str,
    infer_gpus: str,
) -> None:
    """Refuse now what a stage would refuse hours later."""
    parse_gpus(infer_gpus)
    parse_gpus(train_gpus)
    if training.get("total_steps", last_step) < last_step:
        raise UsageProblem(
            f"--total-steps {training['total_steps']} is less than the {last_step} steps of "
            "--segments times --refresh-every"
        )
    kept = refreshing.get("negatives", RefreshConfig.negatives)
    if training.get("negatives_per_positive", 1) > kept:
        raise UsageProblem(
            f"--negatives-per-positive {training['negatives_per_positive']} is more than the "
            f"{kept} that --negatives keeps for a pair"
        )


def _step(run: RunFolder) -> int:
    newest = run.newest_checkpoint()
    return newest[0] if newest else 0


def _finished(run: RunFolder, last_step: int) -> bool:
    published = run.published() if run.exists else None
    return bool(published) and published["checkpoint_step"] >= last_step  # type: ignore[index]


def generation_table(run: RunFolder) -> list[dict[str, Any]]:
    """One row a generation: number, checkpoint step, dev measures, seconds."""
    rows = []
    for path in sorted(run.generations.glob("[0-9]*")):
        stats = read_manifest(path, "generation")["stats"]
        rows.append(
            {
                "generation": int(path.name),
                "checkpoint_step": stats["checkpoint_step"],
                "seconds": stats["seconds"]["all"],
                **stats["dev"],
            }
        )
    return rows
