"""`ance fuse`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import READS, command
from ance_cli.config import FuseConfig
from ance_cli.config.data import Output, RunFiles
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "fuse",
        "Stages",
        takes=("config", "dry_run", "quiet", "json", "force", *READS),
    )
    def fuse(call: Call, *, runs: RunFiles, output: Output, config: FuseConfig) -> Summary:
        """Combine several runs into one, for instance BM25's run and a dense one.

        By reciprocal ranks, or by a weighted sum of scores that are normalised list by list. In
        the sum, a document that is missing from a list gets the lowest score of that list.

        Example: `ance fuse bm25.trec ance.trec --method sum --weights 1,2 -o both.trec`
        """
        from ance_cli.retrieval.fuse import fuse as stage

        return stage(runs, output, config, call=call)
