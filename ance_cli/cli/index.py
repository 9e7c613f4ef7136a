"""`ance index`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, command
from ance_cli.config import IndexConfig
from ance_cli.config.data import OutputFolder
from ance_cli.config.retrieval import IndexedFolder, Refill
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "index", "Stages", takes=(*COMMON, "force", "threads"))
    def index(
        call: Call,
        *,
        embeddings: IndexedFolder,
        output: OutputFolder,
        config: IndexConfig,
        append: Refill = False,
    ) -> Summary:
        """Build a FAISS index over embeddings, in the folder layout that pyserini opens.

        Exact search needs no index. Build one for serving, or to trade recall for speed on a large
        corpus. GPUs build IVF indexes, the CPU all others; any machine opens them.

        Example: `ance index emb/ -o index/ --factory HNSW32 --recall-check 1000`
        """
        from ance_cli.retrieval.index import index as stage

        return stage(embeddings, output, config, append=append, call=call)
