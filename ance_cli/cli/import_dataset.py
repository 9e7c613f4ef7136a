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

        Reads CSV, TSV, Parquet, Arrow and JSON tables of pairs, rows with negatives, documents,
        queries and labels; folders of .txt, .md, .html and .pdf files; datasets of the Hugging
        Face hub; BEIR, MS MARCO, TREC, DPR, Tevatron and FlagEmbedding files; ir_datasets ids.
        Shows what it understood (--dry-run stops there). Writes one checked dataset folder:
        corpus, queries, labels and, if the source has them, negatives (negatives/SPLIT.jsonl) and
        runs (runs/SPLIT.trec).

        Example: `ance import faq.csv --columns query=question,positive=answer --split 80/10/10
        -o data/faq`
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
            columns=config.columns,
            min_score=config.min_score,
            chunk=config.chunk,
            seed=config.seed,
        )
        return stage(request, output, call=call)
