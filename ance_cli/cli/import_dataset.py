"""`ance import`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, READS, command
from ance_cli.config.data import OutputFolder
from ance_cli.config.interop import ImportConfig
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "import", "Stages", takes=(*COMMON, "force", *READS))
    def import_dataset(call: Call, *, config: ImportConfig, output: OutputFolder) -> Summary:
        """Convert a collection into the dataset layout that every command reads.

        Reads BEIR, MS MARCO, TREC, DPR, Tevatron and FlagEmbedding files and ir_datasets ids.
        Writes one checked dataset folder: corpus, queries, labels and, if the source has them,
        negatives (negatives/SPLIT.jsonl) and runs (runs/SPLIT.trec).

        Example: `ance import msmarco-passage:downloads/msmarco -o data/msmarco`
        """
        from ance_cli.interop.import_dataset import import_dataset as stage
        from ance_cli.interop.recognition import Request

        request = Request(
            sources=config.sources or (),
            format=config.format,
            corpora=config.corpora or (),
            queries=config.queries or (),
            qrels=config.qrels or (),
            splits=config.splits or (),
            with_url=config.with_url,
        )
        return stage(request, output, call=call)
