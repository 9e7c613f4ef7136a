"""`ance push`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.cli.calls import run_stage
from ance_cli.cli.flags import FLAGS, RUNTIME, Flag
from ance_cli.cli.options import Flags, command

FLAGS["private"] = Flag(bool, "A new model on the hub is private.", RUNTIME)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "push",
        "private config dry_run quiet json",
        arguments={
            "place": (Path, ..., "Checkpoint, or run folder: its newest checkpoint."),
            "repo_id": (str, ..., "Name of the model on the hub: ORG/NAME."),
        },
        panel="Stages",
    )
    def push(flags: Flags) -> None:
        """Send a checkpoint to the Hugging Face hub, with its model card, in one commit.

        The model is made where there is none. The card is the checkpoint's README.md, or else what
        `ance card` writes. Log in first with `hf auth login`, or set HF_TOKEN.

        Example: `ance push runs/ance/best me/ance-medquad --private`
        """
        from ance_cli.stages.push import push as stage

        run_stage(
            flags,
            lambda reporter, skipped: stage(
                flags.place, flags.repo_id, flags.private, flags.dry_run, reporter
            ),
        )
