"""`ance eval`."""

from __future__ import annotations

from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.command import LOADS, READS, command
from ance_cli.cli.runner import dataset_of
from ance_cli.config import MEASURES, ComputeConfig
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt, DataFiles, Output, RunFiles
from ance_cli.config.evaluation import EvalCases, IgnoreIdenticalIds, Mteb, PerQuery
from ance_cli.config.retrieval import Measures
from ance_cli.errors import UsageProblem
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "eval",
        "Stages",
        takes=("config", "cache_dir", "quiet", "json", "force", *LOADS, *READS),
    )
    def evaluate(
        call: Call,
        asked: CallSettings,
        *,
        runs: RunFiles | None = None,
        data: DataFiles,
        measures: Measures = MEASURES,
        per_query: PerQuery | None = None,
        cases: EvalCases = 0,
        ignore_identical_ids: IgnoreIdenticalIds = False,
        mteb: Mteb | None = None,
        ckpt: Ckpt | None = None,
        output: Output | None = None,
        compute: ComputeConfig,
    ) -> Summary | None:
        """Measure runs against labels and test the later ones against the first, or measure a
        checkpoint on public tasks.

        Averages are over the judged queries, as in trec_eval -c. Intervals are 95 % bootstrap
        intervals; p-values come from a paired randomisation test and a t test, with Holm's
        correction if there are several runs. Besides the measures of ir_measures: Holes@10
        (1 - Judged@10), Overlap@100 (with the first run's top 100), and with --data Answers@20 and
        RegexAnswers@20 (the share of queries with an answer in the top 20).

        With --mteb the checkpoint is measured on tasks of the package mteb. If a call is
        interrupted, the same command measures only the tasks that are left.

        Example: `ance eval bm25.trec dev.trec --qrels data/medquad/qrels/dev.tsv
        --measures "RR@10 nDCG@10"`
        """
        if mteb:
            if ckpt is None:
                raise UsageProblem("--mteb needs --ckpt", hint="name the checkpoint to measure")
            for_runs = {
                "RUNS": runs, "--split": data.split, "--corpus": data.corpus,
                "--queries": data.queries, "--qrels": data.qrels,
                "--measures": measures != MEASURES, "--per-query": per_query, "--cases": cases,
                "--ignore-identical-ids": ignore_identical_ids, "--skip-bad": call.skipped,
            }  # fmt: skip
            _refuse(for_runs, "--mteb measures a checkpoint on tasks with data of their own")
            from ance_cli.evaluation.mteb_tasks import evaluate_on_mteb

            found = evaluate_on_mteb(Checkpoint(ckpt), mteb, output, compute, call)
            if asked.json:
                return found
            if output != STDIO:
                _show_tasks(found)
            return None
        _refuse({"--output": output, "--force": call.force}, "only --mteb writes an output")
        if not runs:
            raise UsageProblem(
                "no run is named",
                hint="name TREC runs, or a task and a checkpoint: --mteb TASK --ckpt DIR",
            )
        from ance_cli.evaluation.evaluate import evaluate_runs

        dataset = dataset_of(data) if data.data or data.corpus else None
        found = evaluate_runs(
            runs,
            dataset.qrels if dataset else data.qrels,
            measures,
            per_query,
            dataset,
            cases,
            ignore_identical_ids,
            call,
        )
        if asked.json:
            return found
        _show(found, call.reporter)
        return None


def _refuse(given: dict[str, Any], why: str) -> None:
    """Raise `UsageProblem` for the first setting that was given and would have no effect."""
    for name, value in given.items():
        if value:
            raise UsageProblem(f"{name}: {why}", hint=f"leave out {name}")


def _show_tasks(found: Summary) -> None:
    """Print the main score of each task, and the mean, on stdout."""
    from ance_cli.cli.console import show_rows, stdout

    columns = ("task", "type", "measure", "score", "seconds")
    rows = [{name: row[name] for name in columns} for row in found["tasks"]]
    if len(rows) > 1:
        rows.append({"task": f"mean of {len(rows)}", "type": "", "measure": "",
                     "score": found["mean"], "seconds": ""})  # fmt: skip
    show_rows([{**row, "score": f"{row['score']:.4f}"} for row in rows], stdout())


def _show(found: Summary, reporter: Reporter) -> None:
    """Print the tables on stdout."""
    from ance_cli.cli.console import show_rows, stdout

    first, *others = found["runs"]
    for row in found["runs"]:
        if missing := row["judged_queries_without_results"]:
            reporter.warn(
                f"{row['run']}: {missing} of {found['queries']} judged queries have no results and "
                "count as 0"
            )
        if own := row["queries_that_retrieve_themselves"]:
            left_out = found["ignore_identical_ids"]
            reporter.warn(
                f"{row['run']}: {own} of {found['queries']} judged queries retrieve the document "
                "with their own id; "
                + (
                    "it is left out"
                    if left_out
                    else "if it is the query, --ignore-identical-ids leaves it out"
                )
            )
    shown = []
    for measure in (others or [first])[0]["measures"]:
        for row in found["runs"]:
            if measure not in row["measures"]:
                continue
            value = row["measures"][measure]
            line = {
                "measure": measure,
                "run": row["run"],
                "mean": f"{value['mean']:.4f}",
                "95 % interval": f"{value['low']:.4f} to {value['high']:.4f}",
            }
            if others:
                line["difference"] = line["p"] = line["p (t)"] = ""
            if len(others) > 1:
                line["p (Holm)"] = line["p (t, Holm)"] = ""
            if "difference" in value:
                line["difference"] = f"{value['difference']:+.4f}"
                for heading, name in (
                    ("p", "p_randomisation"),
                    ("p (t)", "p_t"),
                    ("p (Holm)", "p_randomisation_holm"),
                    ("p (t, Holm)", "p_t_holm"),
                ):
                    if heading in line:
                        line[heading] = f"{value[name]:.4f}"
            shown.append(line)
    show_rows(shown, stdout())
    for row in others:
        if "cases" in row:
            _show_cases(first["run"], row["run"], row["cases"])


def _show_cases(first: str, second: str, cases: dict[str, Any]) -> None:
    """Each case: the query, its two values, and the documents with label and ranks in both runs."""
    from rich.text import Text

    from ance_cli.cli.console import stdout

    console = stdout()
    for kind, words in (("wins", "better"), ("losses", "worse")):
        console.print()
        console.print(
            f"{second} {words} than {first} by {cases['measure']}"
            f"{'' if cases[kind] else ': no query'}"
        )
        for case in cases[kind]:
            values = f"{case['first']:.4f} -> {case['second']:.4f}"
            query = case["query"] or "(not among the queries)"
            console.print(Text(f"{case['query_id']}  {values}  {query}", style="bold"))
            for document in case["documents"]:
                ranks = [document["first_rank"], document["second_rank"]]
                rank = " -> ".join("-" if rank is None else str(rank) for rank in ranks)
                label = "" if document["relevance"] is None else f"  label {document['relevance']}"
                console.print(
                    Text(f"  rank {rank}{label}  {document['doc_id']}", style="cyan"),
                )
                text = " - ".join(filter(None, (document["title"], document["text"])))
                room = 2 * (console.width - 6)
                console.print(
                    Text(f"     {' '.join(text.split())[:room]}", overflow="ellipsis"),
                )
