"""`ance report`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.flags import FLAGS, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import run_stage
from ance_cli.config import REPORT_CASES
from ance_cli.formats.summary import Summary

FLAGS["against"] = Flag(
    list[Path], "What to show the run against: the folder of another run, or a TREC run of the "
    "dev queries; may be repeated.", "Method", metavar="PATH",
)  # fmt: skip
FLAGS["report_cases"] = Flag(
    int, "Show that many wins and that many losses of the best generation against the first.",
    "Method", ("--cases",),
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "report",
        "output against report_cases config cache_dir force quiet json",
        required="output",
        arguments={"run_folder": (Path, ..., "Run folder.")},
        defaults={"report_cases": REPORT_CASES},
        panel="Loop",
    )
    def report(flags: Flags) -> None:
        """Tell a run on one HTML page that needs no network: settings, measures, charts, cases.

        What made what, dev measures by generation and against other runs, loss and gradient norms,
        staleness and drift, the audits, what each refresh cost, and the queries that were won and
        lost. It only reads the run, while it goes on or after; an earlier report is replaced. What
        is missing is named on the page.

        Example: `ance report runs/ance --against runs/bm25 -o report.html`
        """
        run_stage(flags, lambda call: _report(flags, call))


def _report(flags: Flags, call: Call) -> Summary:
    from ance_cli.report.report import report as stage

    made = stage(
        flags.run_folder,
        flags.output,
        flags.against or (),
        flags.report_cases,
        call=call,
    )
    if not flags.json:
        del made["missing"]  # was told in warnings
    return made
