"""`ance report`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import command
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Output, RunPath
from ance_cli.config.evaluation import REPORT_CASES, Against, ReportCases
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "report", "Loop", takes=("config", "cache_dir", "quiet", "json", "force"))
    def report(
        call: Call,
        asked: CallSettings,
        *,
        run_folder: RunPath,
        output: Output,
        against: Against | None = None,
        report_cases: ReportCases = REPORT_CASES,
    ) -> Summary:
        """Show a run on one HTML page that works offline: settings, measures, charts, cases.

        The lineage of every artifact, dev measures by generation and against other runs, loss and
        gradient norms, staleness and drift, the audits, the cost of each refresh, and the queries
        that improved and got worse. The command only reads the run, also while it is active, and
        replaces an earlier report. The page lists what it could not read.

        Example: `ance report runs/ance --against runs/bm25 -o report.html`
        """
        from ance_cli.report.report import report as stage

        made = stage(run_folder, output, against or (), report_cases, call=call)
        if not asked.json:
            del made["missing"]  # the warnings have named it
        return made
