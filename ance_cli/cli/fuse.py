"""`ance fuse`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from ance_cli.cli.flags import FLAGS, METHOD, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import run_stage
from ance_cli.config import FuseConfig

FusionMethod = StrEnum("FusionMethod", ["rrf", "sum"])
Norm = StrEnum("Norm", ["minmax", "z", "none"])

FLAGS |= {
    "method": Flag(FusionMethod, "rrf = reciprocal ranks, sum = scores.", METHOD),
    "rrf_k": Flag(int, "k of --method rrf: 1 / (k + rank).", METHOD),
    "norm": Flag(Norm, "With --method sum: how each list's scores are normalised first.", METHOD),
    "weights": Flag(str, "Weight of each run, in their order (default: 1 each).", METHOD,
                    metavar="A,B"),
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "fuse",
        "skip_bad output method rrf_k norm weights depth tag config force dry_run quiet json",
        configs="fuse",
        required="output",
        arguments={"runs": (list[Path], ..., "TREC runs; - is stdin.")},
        panel="Stages",
    )
    def fuse(flags: Flags) -> None:
        """Make one run out of several, for instance BM25's and a dense one.

        By reciprocal ranks, or by a weighted sum of scores, normalised list by list; there a
        document that a list does not have counts as the list's lowest.

        Example: `ance fuse bm25.trec ance.trec --method sum --weights 1,2 -o both.trec`
        """
        from ance_cli.retrieval.fuse import fuse as stage

        run_stage(
            flags,
            lambda call: stage(
                flags.runs,
                flags.output,
                flags.config(FuseConfig),
                call=call,
            ),
        )
