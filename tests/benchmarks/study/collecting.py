"""What is kept of a cell: measures, values of each query, and what single items ask for beside."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.study.cell import Outcome

_DIGITS = 4


def measured(outcome: Outcome) -> dict[str, Any]:
    """`measures` and `per_query` of all `ance eval` commands, by the label of the run.

    A run's label is its file's name up to the first dot. `per_query` has the values of the first
    measure of each evaluation with `--per-query`, in the order of the sorted query ids.
    """
    measures: dict[str, dict[str, dict[str, float]]] = {}
    per_query: dict[str, list[float]] = {}
    for words, summary in zip(outcome.commands, outcome.summaries, strict=True):
        if summary.get("kind") != "evaluation":
            continue
        for row in summary["runs"]:
            measures[label_of(row["run"])] = {
                measure: {name: round(value, 6) for name, value in values.items()}
                for measure, values in row["measures"].items()
            }
        if "--per-query" in words:
            first = next(iter(summary["runs"][0]["measures"]))
            table = Path(words[words.index("--per-query") + 1])
            for run, values in read_per_query(table, first).items():
                per_query[label_of(run)] = [
                    round(value, _DIGITS) for _, value in sorted(values.items())
                ]
    return {"measures": measures, "per_query": per_query}


def label_of(run: str) -> str:
    """`tested/bm25-42/rerank.trec` -> `rerank`."""
    return Path(run).name.split(".")[0]


def read_per_query(path: Path, measure: str) -> dict[str, dict[str, float]]:
    """run -> query_id -> value of one measure, from what `ance eval --per-query` wrote."""
    found: dict[str, dict[str, float]] = {}
    with open(path, newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["measure"] == measure:
                found.setdefault(row["run"], {})[row["query_id"]] = float(row["value"])
    return found


def seconds_told(summary: Mapping[str, Any]) -> Any:
    """What a command's own summary says of its time; None where it says nothing."""
    return summary.get("seconds")
