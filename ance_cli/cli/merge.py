"""`ance merge`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, READS, command
from ance_cli.config.data import Datasets, OutputFolder
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "merge", "Stages", takes=(*COMMON, "force", *READS))
    def merge(call: Call, *, datasets: Datasets, output: OutputFolder) -> Summary:
        """Merge datasets into one, to train on all of them in one run.

        Ids become NAME/ID, with the folder's name. A share says how often training visits a
        dataset. A query's negatives always come from its own dataset.

        Example: `ance merge data/nq:0.7 data/trivia:0.3 -o data/both`
        """
        from ance_cli.interop.merge import merge as stage
        from ance_cli.interop.merge import parse_source

        return stage([parse_source(text) for text in datasets], output, call=call)
