"""`ance eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ance_cli.cli.calls import run_stage
from ance_cli.cli.options import Flags, command
from ance_cli.config import MEASURES
from ance_cli.stages.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "eval",
        "qrels skip_bad measures per_query config quiet json",
        configs="refresh",
        required="qrels",
        arguments={"runs": (list[Path], ..., "TREC runs; the first is what others are tested "
                            "against.")},
        panel="Stages",
    )  # fmt: skip
    def evaluate(flags: Flags) -> None:
        """Measure runs against labels, and test the later ones against the first.

        Averages are over the judged queries, as trec_eval -c does; intervals are 95 % bootstrap,
        p-values of a paired randomisation test.

        Example: `ance eval bm25.trec dev.trec --qrels data/medquad/qrels/dev.tsv
        --measures "RR@10 nDCG@10"`
        """
        from ance_cli.stages.evaluate import evaluate_runs

        def stage(reporter: Any, skipped: Any) -> Summary:
            found = evaluate_runs(
                flags.runs, flags.qrels, flags.measures or MEASURES, flags.per_query, skipped
            )
            if not flags.json:
                _show(found, reporter)
                return {}
            return found

        run_stage(flags, stage)


def _show(found: Summary, reporter: Any) -> None:
    """The table goes to stdout: it is what was asked for."""
    from ance_cli.cli.console import show_rows, stdout

    for row in found["runs"]:
        if missing := row["judged_queries_without_results"]:
            reporter.warn(
                f"{row['run']}: {missing} of {found['queries']} judged queries have no results; "
                "they count as 0"
            )
    measures = found["runs"][0]["measures"]
    shown = []
    for measure in measures:
        for row in found["runs"]:
            value = row["measures"][measure]
            line = {
                "measure": measure,
                "run": row["run"],
                "mean": f"{value['mean']:.4f}",
                "95 % interval": f"{value['low']:.4f} to {value['high']:.4f}",
            }
            if len(found["runs"]) > 1:
                tested = "difference" in value
                line["difference"] = f"{value['difference']:+.4f}" if tested else ""
                line["p"] = f"{value['p_randomisation']:.4f}" if tested else ""
            shown.append(line)
    show_rows(shown, stdout())
