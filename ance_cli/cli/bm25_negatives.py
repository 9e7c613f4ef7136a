"""`ance bm25-negatives`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, READS, command
from ance_cli.cli.runner import dataset_of
from ance_cli.config import Bm25Config, DeviceConfig
from ance_cli.config.data import Output, TrainFiles
from ance_cli.config.mining import Bm25Run, OverlapWith, WithText
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "bm25-negatives",
        "Stages",
        takes=(*COMMON, "force", "threads", *READS),
    )
    def bm25_negatives(
        call: Call,
        *,
        data: TrainFiles,
        run: Bm25Run | None = None,
        output: Output,
        overlap_with: OverlapWith | None = None,
        with_text: WithText = False,
        config: Bm25Config,
        device: DeviceConfig,
    ) -> Summary:
        """Draw negatives from BM25's ranking (or a given run), for the warm-up.

        Writes one JSON line per pair of query and positive. All known positives of the query, and
        all copies of their texts, are removed first.

        Example: `ance bm25-negatives --data data/medquad --split train --depth 200 -o bm25.jsonl`
        """
        from ance_cli.mining.bm25_negatives import bm25_negatives as stage
        from ance_cli.mining.negatives_output import NegativesFiles

        return stage(
            dataset_of(data),
            NegativesFiles(output, overlap_with, with_text),
            config,
            device,
            run,
            call,
        )
