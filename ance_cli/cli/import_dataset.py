"""`ance import`."""

from __future__ import annotations

import typer

from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, run_stage


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "import",
        "import_format splits corpora query_files qrels_files with_url output skip_bad force "
        f"{COMMON}",
        required="output",
        arguments={"sources": (list[str] | None, None, "What to read: PATH, FORMAT:PATH or "
                               "ir-datasets:ID, a file or a folder of the files that belong "
                               "together. Several make one dataset.")},
        panel="Stages",
    )  # fmt: skip
    def import_dataset(flags: Flags) -> None:
        """Bring a collection into the layout that every command reads.

        Reads BEIR, MS MARCO, TREC, DPR, Tevatron and FlagEmbedding files, and what ir_datasets
        knows, and leaves one checked dataset folder: corpus, queries, labels and, where the source
        has them, negatives (negatives/SPLIT.jsonl) and runs (runs/SPLIT.trec).

        Example: `ance import msmarco-passage:downloads/msmarco -o data/msmarco`
        """
        from ance_cli.interop.import_dataset import import_dataset as stage
        from ance_cli.interop.recognition import Request

        request = Request(
            sources=flags.sources or (),
            format=flags.import_format,
            corpora=flags.corpora or (),
            queries=flags.query_files or (),
            qrels=flags.qrels_files or (),
            splits=flags.splits or (),
            with_url=flags.with_url,
        )
        run_stage(
            flags,
            lambda call: stage(
                request,
                flags.output,
                call=call,
            ),
        )
