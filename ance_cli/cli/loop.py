"""`ance loop`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import merged_data
from ance_cli.config import FollowConfig, LoopConfig, LoopDevices, RefreshTiming
from ance_cli.config.data import OutputFolder, RunStart
from ance_cli.config.loop import Baseline, RefreshRules
from ance_cli.config.presets import BASELINES
from ance_cli.config.setting import Given
from ance_cli.config.training import Preset, RecipeConfig, WorkerConfig
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "loop", "Loop", takes=(*COMMON, *LOADS, *READS))
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
        running: Given[WorkerConfig],
        devices: LoopDevices,
    ) -> Summary:
        """Train and refresh, at the same time or alternating: all of ANCE in one command.

        Runs `ance refresh` and `ance train-segment` as you would yourself. It can be killed at any
        time: the same command continues. With GPUs for both, the trainer never waits.

        Example: `ance loop --data data/medquad --ckpt runs/warmup/latest --refresh-every 300
        --segments 3 -o runs/ance`
        """
        from ance_cli.loop.loop import loop as stage

        given = {**start.values, "preset": preset, **(BASELINES[baseline] if baseline else {}),
                 **recipe.values, **refreshing.values, **running.values}  # fmt: skip
        given.pop("datas", None)
        if data := merged_data(start.config(), output, call):
            given["data"] = data
        return stage(output, config, FollowConfig(**vars(timing)), given, devices, call)
