"""`ance card`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import command
from ance_cli.config.data import Output
from ance_cli.config.interop import ModelName, Place
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "card", "Stages", takes=("config", "quiet", "json", "force"))
    def card(
        call: Call, *, place: Place, output: Output = STDIO, model_name: ModelName | None = None
    ) -> Summary:
        """Write the model card of a checkpoint: its use, lineage, data, recipe and measures.

        Markdown with the YAML front matter that the Hugging Face hub reads, made from the
        checkpoint and its run folder.

        Example: `ance card runs/ance/best --name me/ance-medquad -o README.md`
        """
        from ance_cli.hub.card import write_card

        return write_card(place, output, model_name, call=call)
