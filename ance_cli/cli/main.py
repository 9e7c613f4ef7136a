"""The `ance` program: its commands, and its exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
import typer.core

from ance_cli import __version__
from ance_cli.cli import (
    bench_search,
    bm25_negatives,
    card,
    checkpoint,
    demo,
    diagnose,
    doctor,
    encode,
    evaluate,
    export,
    fuse,
    generate_queries,
    import_dataset,
    index,
    init,
    loop,
    merge,
    mine,
    read,
    refresh,
    report,
    rerank,
    search,
    split,
    status,
    tokenize,
    train_segment,
)
from ance_cli.cli.exit import exit_code_of
from ance_cli.errors import install_signal_handlers

_ALSO_CALLED = {
    "train": ("train-segment", "loop"), "embed": ("encode",), "help": ("--help",),
    "retrieve": ("search",), "evaluate": ("eval",), "convert": ("checkpoint",),
}  # fmt: skip
"""Names from other programs that are too far from ours to be found by their letters."""


class _Commands(typer.core.TyperGroup):
    """The commands; names that other programs use are answered with ours."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and (ours := _ALSO_CALLED.get(args[0])):
            ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(map(repr, ours))}?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="ance",
    cls=_Commands,
    help="Train dense retrievers with negatives mined by the model being trained (ANCE).\n\n"
    "Stages are independent commands that share files; `ance loop` runs the same stages and leaves "
    "the same files. Try `ance demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ance {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


for module in (
    demo, init, doctor, import_dataset, split, generate_queries, merge, bm25_negatives, tokenize,
    encode, index, mine, train_segment, search, rerank, fuse, evaluate, read, bench_search, refresh,
    loop, status, report, diagnose, checkpoint, export, card,
):  # fmt: skip
    module.register(app)


def run() -> None:
    """Run the command line and leave with its exit code."""
    os.environ["PYTHONSAFEPATH"] = "1"  # also for the processes that libraries start
    install_signal_handlers()
    sys.exit(exit_code_of(app))
