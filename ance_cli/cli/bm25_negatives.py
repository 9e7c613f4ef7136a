"""`ance bm25-negatives`."""

from __future__ import annotations

import typer

from ance_cli.cli.mine import DRAWING
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, dataset_of, run_stage
from ance_cli.config import Bm25Config, EncodeConfig


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "bm25-negatives",
        "data split corpus queries qrels min_rel skip_bad run output overlap_with with_text "
        f"{DRAWING} seed gpus dtype threads force {COMMON}",
        configs="bm25 encode",
        required="output",
        defaults={"split": "train"},
        panel="Stages",
    )
    def bm25_negatives(flags: Flags) -> None:
        """Draw negatives from BM25's ranking (or a given run), for the warm-up.

        One JSON line for each pair of query and positive. Every known positive of the query, and
        every copy of one, is removed first.

        Example: `ance bm25-negatives --data data/medquad --split train --depth 200 -o bm25.jsonl`
        """
        from ance_cli.mining.bm25_negatives import bm25_negatives as stage

        run_stage(
            flags,
            lambda call: stage(
                dataset_of(flags),
                flags.output,
                flags.config(Bm25Config),
                flags.config(EncodeConfig),
                run=flags.run,
                earlier=flags.overlap_with,
                with_text=flags.with_text,
                call=call,
            ),
        )
