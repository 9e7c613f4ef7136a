"""The `ance` program: its commands, and how a run of it ends."""

from __future__ import annotations

import sys

import typer

from ance_cli import __version__
from ance_cli.cli import (
    bm25_negatives,
    demo,
    encode,
    evaluate,
    index,
    loop,
    merge,
    mine,
    refresh,
    search,
    train_segment,
)
from ance_cli.errors import (
    AnceError,
    MachineGaveOut,
    Stopped,
    UsageProblem,
    install_signal_handlers,
)

app = typer.Typer(
    name="ance",
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
    demo, merge, bm25_negatives, encode, index, mine, train_segment, search, evaluate, refresh,
    loop,
):  # fmt: skip
    module.register(app)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has a type for its GPUs and only words for the CPU."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "can't allocate memory" in str(error)


def run() -> None:
    """Run the command line and leave with its exit code."""
    install_signal_handlers()
    sys.exit(_run())


def _run() -> int:
    from ance_cli.cli.console import show_error, stderr

    try:
        app()
    except SystemExit as leave:  # typer has shown its own usage errors
        return leave.code if isinstance(leave.code, int) else 0
    except AnceError as error:
        show_error(error)
        return error.exit_code
    except Stopped as stop:
        stderr.print("stopped; what is finished is kept: the same command continues")
        return stop.exit_code
    except PermissionError as error:
        show_error(
            UsageProblem(
                f"{error.filename}: this user may not write or read there",
                hint="check the permissions, or choose another place with -o or --cache-dir",
            )
        )
        return UsageProblem.exit_code
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        problem = MachineGaveOut(
            "memory ran out", hint="close other programs, or lower --batch-size or --batch-tokens"
        )
        show_error(problem)
        return problem.exit_code
    return 0
