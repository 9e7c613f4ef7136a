"""`ance merge`."""

from __future__ import annotations

import typer

from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, run_stage


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "merge",
        f"output skip_bad force {COMMON}",
        required="output",
        arguments={"datasets": (list[str], ..., "Dataset folders, DIR or DIR:SHARE; without "
                                "shares each has its part of the train pairs.")},
        panel="Stages",
    )  # fmt: skip
    def merge(flags: Flags) -> None:
        """Merge datasets into one, to train on all of them in one run.

        Ids become NAME/ID, with the folder's name. Shares say how often training visits each
        dataset. Negatives never cross: a query's come from its own dataset.

        Example: `ance merge data/nq:0.7 data/trivia:0.3 -o data/both`
        """
        from ance_cli.interop.merge import merge as stage
        from ance_cli.interop.merge import parse_source

        run_stage(
            flags,
            lambda call: stage(
                [parse_source(text) for text in flags.datasets],
                flags.output,
                call=call,
            ),
        )
