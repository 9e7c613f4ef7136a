"""`ance refresh`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.mine import DRAWING, MARGINS
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, run_stage
from ance_cli.config import FollowConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary

REFRESHING = (
    f"dev_split {DRAWING} {MARGINS} audit_bm25 dev_depth measures index_factory probes encode_dtype"
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "refresh",
        f"{REFRESHING} follow until refresh drift_threshold keep gpus ray threads force {COMMON}",
        configs="refresh follow",
        arguments={"run_folder": (Path, ..., "Run folder.")},
        panel="Loop",
    )
    def refresh(flags: Flags) -> None:
        """Make and publish new negatives from a run's newest checkpoint, unless they are there.

        The first refresh fixes the method for the run; later ones need only the folder. This is
        what a crontab line runs. With --follow it goes on, checkpoint after checkpoint, while
        somebody else trains.

        Example: `ance refresh runs/ance`
        """
        from ance_cli.loop.refresh import refresh as stage
        from ance_cli.loop.refresh_daemon import refresh_while_training

        given = {name: flags.typed[name] for name in REFRESHING.split() if name in flags.typed}
        if flags.follow and (flags.force or flags.dry_run):
            raise UsageProblem("--follow goes without --force and --dry-run")

        def make(call: Call) -> Summary:
            if flags.follow:
                return refresh_while_training(
                    flags.run_folder, given, flags.config(FollowConfig), flags.gpus, flags.ray,
                    call=call,
                )  # fmt: skip
            return stage(
                flags.run_folder,
                given,
                gpus=flags.gpus,
                keep=flags.keep,
                ray=flags.ray,
                call=call,
            )

        run_stage(flags, make)
