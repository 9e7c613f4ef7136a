"""`ance demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import run_stage
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "demo",
        "ckpt output gpus threads cache_dir quiet json",
        defaults={"output": Path("ance-demo")},
        panel="Start here",
    )
    def demo(flags: Flags) -> None:
        """The whole cycle on text that every Python carries, in minutes on a laptop.

        Docstrings are the corpus and their first lines the queries. BM25 negatives, a warm-up, two
        refreshes with training on what they mined, and a table of test measures at the end.

        Example: `ance demo`
        """
        from ance_cli.setup.demo import demo as stage

        def run(call: Call) -> Summary:
            found = stage(flags.output, flags.ckpt, gpus=flags.gpus, call=call)
            if flags.json:
                return found
            _show(found)
            return {}

        run_stage(flags, run)


def _show(found: Summary) -> None:
    from rich.table import Table

    from ance_cli.cli.console import show_rows, stdout

    console = stdout()
    console.print()
    show_rows(found["rows"], console)
    console.print(f"\n{found['verdict']}\n", markup=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, path in found["made"].items():
        table.add_row(name, path)
    console.print(table)
    console.print("\nTry next:", style="bold")
    for line in found["next"]:
        console.print(f"  {line}", markup=False)
