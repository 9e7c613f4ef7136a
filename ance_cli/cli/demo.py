"""`ance demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.command import command
from ance_cli.config import DemoConfig
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt
from ance_cli.config.encoding import Gpus
from ance_cli.config.setup import QUICK_DEMO, DemoFolder, Quick
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "demo", "Start here", takes=("threads", "cache_dir", "quiet", "json"))
    def demo(
        call: Call,
        asked: CallSettings,
        *,
        ckpt: Ckpt | None = None,
        output: DemoFolder | None = None,
        quick: Quick = False,
        gpus: Gpus = "all",
    ) -> Summary | None:
        """Run the whole cycle in minutes, on text that comes with Python.

        Docstrings are the corpus, and their first lines are the queries. The demo mines BM25
        negatives, trains a warm-up, refreshes and trains twice, and prints a table of test
        measures.

        Example: `ance demo`
        """
        from ance_cli.setup.demo import demo as stage

        config = QUICK_DEMO if quick else DemoConfig()
        folder = output or Path("ance-demo-quick" if quick else "ance-demo")
        found = stage(folder, ckpt, config, gpus=gpus, call=call)
        if asked.json:
            return found
        _show(found)
        return None


def _show(found: Summary) -> None:
    from rich.table import Table

    from ance_cli.cli.console import show_rows, stdout

    console = stdout()
    console.print()
    show_rows(found["rows"], console)
    console.print(f"\n{found['verdict']}\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, path in found["made"].items():
        table.add_row(name, path)
    console.print(table)
    console.print("\nTry next:", style="bold")
    for line in found["next"]:
        console.print(f"  {line}")
