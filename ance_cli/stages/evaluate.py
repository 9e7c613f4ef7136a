"""`ance eval`: measures of one run, or of several against the first."""

from __future__ import annotations

from pathlib import Path

from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import read_qrels
from ance_cli.formats.jsonl import STDIO, Skipped, open_output
from ance_cli.formats.trec import read_run
from ance_cli.stages.summary import Summary


def evaluate_runs(
    runs: list[Path],
    qrels: Path,
    measures: str,
    per_query: Path | None = None,
    skipped: Skipped | None = None,
) -> Summary:
    """Means over the judged queries with 95 % intervals, and paired tests against the first run.

    `per_query` receives a TSV: run, query_id, measure, value.
    """
    from ance_cli.evaluation.measures import evaluate, parse_measures
    from ance_cli.evaluation.significance import confidence_interval, paired_test

    parse_measures(measures)
    if len(set(runs)) < len(runs):
        raise UsageProblem("a run is named twice")
    if per_query == STDIO:
        raise UsageProblem("--per-query is a table of its own", hint="name a file for it")
    if per_query is not None and per_query.resolve() in {path.resolve() for path in (*runs, qrels)}:
        raise UsageProblem(
            f"--per-query {per_query}: this command reads it, and would replace it",
            hint="name another file",
        )
    labels = read_qrels(qrels, skipped=skipped)
    evaluations = {str(path): evaluate(read_run(path, skipped), labels, measures) for path in runs}
    first = next(iter(evaluations.values()))
    found: Summary = {"kind": "evaluation", "qrels": str(qrels), "queries": len(labels), "runs": []}
    for name, evaluation in evaluations.items():
        row: Summary = {
            "run": name,
            "judged_queries_without_results": len(evaluation.without_results),
            "measures": {},
        }
        for measure, values in evaluation.per_query.items():
            low, high = confidence_interval(list(values.values()))
            row["measures"][measure] = {
                "mean": evaluation.mean(measure), "low": low, "high": high,
            }  # fmt: skip
            if evaluation is not first:
                test = paired_test(list(first.per_query[measure].values()), list(values.values()))
                row["measures"][measure] |= {
                    "difference": test.difference,
                    "p_randomisation": test.p_randomisation,
                    "p_t": test.p_t,
                }
        found["runs"].append(row)
    if per_query is not None:
        with open_output(per_query) as handle:
            handle.write(b"run\tquery_id\tmeasure\tvalue\n")
            for name, evaluation in evaluations.items():
                for measure, values in evaluation.per_query.items():
                    for query_id, value in values.items():
                        handle.write(f"{name}\t{query_id}\t{measure}\t{value:.6f}\n".encode())
    return found
