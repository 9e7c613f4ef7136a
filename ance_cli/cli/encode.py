"""`ance encode`."""

from __future__ import annotations

import typer

from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, ENCODING_SETTINGS, checkpoint_of, dataset_of, run_stage
from ance_cli.config import EncodeConfig


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "encode",
        f"ckpt data split corpus queries qrels skip_bad tokens output side {ENCODING_SETTINGS} "
        f"output_dtype gpus cpu_workers shard ray dtype batch_tokens threads force {COMMON}",
        configs="encode",
        required="ckpt output",
        panel="Stages",
    )
    def encode(flags: Flags) -> None:
        """Encode a corpus (or queries) to memory-mapped vectors.

        The work is cut into blocks: an interrupted call is continued by the same command, and only
        the blocks that are missing are encoded. Each GPU has a process of its own. With --ray the
        processes are those of a cluster, and the result is the same.

        Example: `ance encode --ckpt runs/warmup/latest --data data/medquad -o emb/`
        """
        from ance_cli.encoding.encode import encode as stage
        from ance_cli.encoding.encode import parse_shard

        run_stage(
            flags,
            lambda call: stage(
                checkpoint_of(flags),
                dataset_of(flags),
                flags.output,
                flags.config(EncodeConfig),
                tokens=flags.tokens,
                shard=parse_shard(flags.shard),
                call=call,
            ),
        )
