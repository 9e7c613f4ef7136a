"""`ance split`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, READS, command
from ance_cli.config.data import DatasetPath, OutputFolder
from ance_cli.config.interop import SplitConfig
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "split", "Stages", takes=(*COMMON, "force", *READS))
    def split(
        call: Call, *, dataset: DatasetPath, config: SplitConfig, output: OutputFolder
    ) -> Summary:
        """Divide the judged queries of a dataset into train, dev and test.

        Queries that share a positive, and near-duplicates of queries and positives, stay together,
        so that no test asks what training showed. Writes a new dataset folder.

        Example: `ance split data/faq --shares 80/10/10 -o data/faq-split`
        """
        from ance_cli.interop.split import split as stage

        return stage(dataset, output, config, call=call)
