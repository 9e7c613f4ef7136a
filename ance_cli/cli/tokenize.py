"""`ance tokenize`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config.data import Ckpt, CorpusFiles, OutputFolder, PassageOverrides
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "tokenize", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def tokenize(
        call: Call,
        *,
        ckpt: Ckpt,
        data: CorpusFiles,
        output: OutputFolder | None = None,
        overrides: PassageOverrides,
    ) -> Summary:
        """Tokenize a corpus once, for every checkpoint with the same tokenizer.

        Encoding and training do this themselves if it has not been done. The token cache is
        written to the cache folder, where they look for it, or to -o, for `ance encode --tokens`.

        Example: `ance tokenize --ckpt runs/warmup/latest --data data/medquad`
        """
        from ance_cli.encoding.tokenize import tokenize as stage

        return stage(checkpoint_of(ckpt, overrides), dataset_of(data), output, call=call)
