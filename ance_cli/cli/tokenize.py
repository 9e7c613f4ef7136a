"""`ance tokenize`."""

from __future__ import annotations

import typer

from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, checkpoint_of, dataset_of, run_stage

_PINS = "passage_length separator segmentation max_segments"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "tokenize",
        f"ckpt data corpus skip_bad output {_PINS} threads force {COMMON}",
        required="ckpt",
        panel="Stages",
    )
    def tokenize(flags: Flags) -> None:
        """Tokenise a corpus once, for every checkpoint with the same tokenizer.

        Encoding and training do this by themselves where it was not done yet. The token cache goes
        into the cache folder, where they look for it, or into -o, which `ance encode --tokens`
        names.

        Example: `ance tokenize --ckpt runs/warmup/latest --data data/medquad`
        """
        from ance_cli.encoding.tokenize import tokenize as stage

        run_stage(
            flags,
            lambda call: stage(
                checkpoint_of(flags),
                dataset_of(flags),
                flags.output,
                call=call,
            ),
        )
