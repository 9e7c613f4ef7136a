"""`ance index`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, run_stage
from ance_cli.config import IndexConfig


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "index",
        f"output factory train_rows probes recall_check seed threads force {COMMON}",
        configs="index",
        required="output",
        arguments={"embeddings": (Path, ..., "Embeddings folder that `ance encode` made.")},
        panel="Stages",
    )
    def index(flags: Flags) -> None:
        """Build a FAISS index over embeddings, in the folder layout that pyserini opens.

        Searching embeddings exactly needs no index: build one for serving, or to trade recall for
        speed on a large corpus.

        Example: `ance index emb/ -o index/ --factory HNSW32 --recall-check 1000`
        """
        from ance_cli.retrieval.index import index as stage

        run_stage(
            flags,
            lambda call: stage(
                flags.embeddings,
                flags.output,
                flags.config(IndexConfig),
                call=call,
            ),
        )
