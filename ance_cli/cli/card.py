"""`ance card`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.cli.flags import FLAGS, METHOD, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import run_stage
from ance_cli.formats.jsonl import STDIO

FLAGS["model_name"] = Flag(
    str, "How readers call the model, ORG/NAME on the hub (default: the folder's name).", METHOD,
    ("--name",), "NAME",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "card",
        "output model_name force config quiet json",
        defaults={"output": STDIO},
        arguments={"place": (Path, ..., "Checkpoint, or run folder: its newest checkpoint.")},
        panel="Stages",
    )
    def card(flags: Flags) -> None:
        """Write the model card of a checkpoint: its use, lineage, data, recipe and measures.

        Markdown with the YAML front matter that the Hugging Face hub reads, made from the
        checkpoint and the run folder that it lies in.

        Example: `ance card runs/ance/best --name me/ance-medquad -o README.md`
        """
        from ance_cli.hub.card import write_card

        run_stage(
            flags,
            lambda call: write_card(flags.place, flags.output, flags.model_name, call=call),
        )
