"""`ance refresh`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.cli.calls import COMMON, run_stage
from ance_cli.cli.mine import DRAWING, MARGINS
from ance_cli.cli.options import Flags, command

REFRESHING = (
    f"dev_split {DRAWING} {MARGINS} audit_bm25 dev_depth measures index_factory probes encode_dtype"
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "refresh",
        f"{REFRESHING} gpus threads force {COMMON}",
        configs="refresh",
        arguments={"run_folder": (Path, ..., "Run folder.")},
        panel="Loop",
    )
    def refresh(flags: Flags) -> None:
        """Make and publish new negatives from a run's newest checkpoint, unless they are there.

        The first refresh fixes the method for the run; later ones need only the folder. This is
        what a crontab line runs.

        Example: `ance refresh runs/ance`
        """
        from ance_cli.stages.refresh import refresh as stage

        names = REFRESHING.split()
        run_stage(
            flags,
            lambda reporter, _: stage(
                flags.run_folder,
                {name: value for name, value in flags.typed.items() if name in names},
                gpus=flags.gpus,
                threads=flags.threads,
                force=flags.force,
                dry_run=flags.dry_run,
                reporter=reporter,
            ),
        )
