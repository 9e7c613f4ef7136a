"""`ance refresh`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, command
from ance_cli.config import FollowConfig, RefreshDevices
from ance_cli.config.data import RunPath
from ance_cli.config.loop import FollowRun, RefreshRules
from ance_cli.config.setting import Given
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "refresh", "Loop", takes=(*COMMON, "force", *LOADS))
    def refresh(
        call: Call,
        *,
        run_folder: RunPath,
        rules: Given[RefreshRules],
        follow: FollowRun = False,
        timing: FollowConfig,
        devices: RefreshDevices,
    ) -> Summary:
        """Mine and publish new negatives from a run's newest checkpoint, unless they exist.

        The first refresh fixes the mining settings of the run; later refreshes need only the
        folder, for instance in a crontab. With --follow the command keeps running and refreshes
        from each checkpoint that a trainer writes.

        Example: `ance refresh runs/ance`
        """
        from ance_cli.loop.refresh import refresh as stage
        from ance_cli.loop.refresh_daemon import refresh_while_training

        if follow and (call.force or call.dry_run):
            raise UsageProblem("--follow cannot be combined with --force or --dry-run")
        if follow:
            return refresh_while_training(run_folder, rules.values, timing, devices, call)
        return stage(run_folder, rules.values, devices, timing.keep, call)
