"""`ance loop`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.options import Flags, command
from ance_cli.cli.refresh import REFRESHING
from ance_cli.cli.runner import COMMON, data_of, run_stage
from ance_cli.cli.train_segment import RECIPE, RUNNING
from ance_cli.config import FollowConfig, LoopConfig
from ance_cli.config.presets import BASELINES
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "loop",
        f"datas split corpus queries qrels ckpt output refresh_every segments baseline {RECIPE} "
        f"{REFRESHING} mode refresh drift_threshold max_staleness patience keep {RUNNING} gpus "
        f"train_gpus infer_gpus gpu_split ray threads max_restarts {COMMON}",
        configs="loop refresh train segment follow",
        required="output",
        defaults={"split": "train"},
        panel="Loop",
    )
    def loop(flags: Flags) -> None:
        """Train and refresh, side by side or in turn: the whole of ANCE in one command.

        Runs `ance refresh` and `ance train-segment` as a person would, and can be killed at any
        instant: the same command continues. With GPUs for both sides the trainer never waits.

        Example: `ance loop --data data/medquad --ckpt runs/warmup/latest --refresh-every 300
        --segments 3 -o runs/ance`
        """
        from ance_cli.loop.loop import Given
        from ance_cli.loop.loop import loop as stage

        chosen = {**BASELINES.get(flags.baseline, {}), **flags.typed}

        def given(names: str) -> dict[str, object]:
            return {name: chosen[name] for name in names.split() if name in chosen}

        def cycle(call: Call) -> Summary:
            training = given(f"split corpus queries qrels ckpt {RECIPE}")
            if data := data_of(flags, call):
                training["data"] = data
            return stage(
                flags.output,
                flags.config(LoopConfig),
                flags.config(FollowConfig),
                Given(training, given(RUNNING), given(REFRESHING)),
                max_staleness=flags.max_staleness,
                gpus=flags.gpus,
                train_gpus=flags.train_gpus,
                infer_gpus=flags.infer_gpus,
                ray=flags.ray,
                call=call,
            )

        run_stage(flags, cycle)
