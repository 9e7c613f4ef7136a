"""`ance encode`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import EncodeConfig
from ance_cli.config.data import Ckpt, DataFiles, EncodingOverrides, OutputFolder
from ance_cli.config.encoding import Append, Shard, Tokens
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "encode", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def encode(
        call: Call,
        *,
        ckpt: Ckpt,
        data: DataFiles,
        tokens: Tokens | None = None,
        output: OutputFolder,
        config: EncodeConfig,
        shard: Shard | None = None,
        append: Append = False,
        overrides: EncodingOverrides,
    ) -> Summary:
        """Encode a corpus (or queries) to memory-mapped vectors.

        The work is cut into blocks. If a call is interrupted, the same command continues it and
        encodes only the missing blocks. Each GPU has its own process. With --ray the processes run
        in a Ray cluster, and the vectors are the same.

        Example: `ance encode --ckpt runs/warmup/latest --data data/medquad -o emb/`
        """
        from ance_cli.encoding.encode import encode as stage
        from ance_cli.encoding.encode import parse_shard

        return stage(
            checkpoint_of(ckpt, overrides),
            dataset_of(data, needs_corpus=config.side == "passage"),
            output,
            config,
            tokens=tokens,
            shard=parse_shard(shard),
            append=append,
            call=call,
        )
