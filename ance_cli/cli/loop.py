"""`ance loop`."""

from __future__ import annotations

from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, command
from ance_cli.cli.runner import merged_data
from ance_cli.config import FollowConfig, LoopConfig, RefreshTiming
from ance_cli.config.data import OutputFolder, RunStart
from ance_cli.config.encoding import Gpus, Ray
from ance_cli.config.loop import Baseline, InferGpus, RefreshRules, TrainGpus
from ance_cli.config.presets import BASELINES
from ance_cli.config.setting import Given
from ance_cli.config.training import MaxStaleness, Preset, RecipeConfig, WorkerConfig
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "loop", "Loop", takes=(*COMMON, "threads", "skip_bad"))
    def loop(
        call: Call,
        *,
        start: Given[RunStart],
        output: OutputFolder,
        config: LoopConfig,
        baseline: Baseline | None = None,
        preset: Preset | None = None,
        recipe: Given[RecipeConfig],
        refreshing: Given[RefreshRules],
        timing: RefreshTiming,
        max_staleness: MaxStaleness = 0,
        running: Given[WorkerConfig],
        gpus: Gpus = "all",
        train_gpus: TrainGpus | None = None,
        infer_gpus: InferGpus | None = None,
        ray: Ray | None = None,
    ) -> Summary:
        """Train and refresh, at the same time or alternating: all of ANCE in one command.

        Runs `ance refresh` and `ance train-segment` as you would yourself. It can be killed at any
        time: the same command continues. With GPUs for both, the trainer never waits.

        Example: `ance loop --data data/medquad --ckpt runs/warmup/latest --refresh-every 300
        --segments 3 -o runs/ance`
        """
        from ance_cli.loop.loop import Given as GivenToLoop
        from ance_cli.loop.loop import loop as stage

        arm = BASELINES[baseline] if baseline else {}

        def with_arm(given: Given[Any]) -> dict[str, Any]:
            """What the caller set, over what --baseline sets."""
            known = given.all.keys()
            return {**{name: arm[name] for name in arm if name in known}, **given.values}

        training = {**start.values, "preset": preset, **with_arm(recipe)}
        training.pop("datas", None)
        if data := merged_data(start.config(), output, call):
            training["data"] = data
        return stage(
            output,
            config,
            FollowConfig(**vars(timing)),
            GivenToLoop(training, running.values, with_arm(refreshing)),
            max_staleness=max_staleness,
            gpus=gpus,
            train_gpus=train_gpus,
            infer_gpus=infer_gpus,
            ray=ray,
            call=call,
        )
