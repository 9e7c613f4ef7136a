"""What is kept of a cell: measures, values of each query, and extra fields of single items."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors.numpy import load_file

from ance_cli.diagnostics.history import read_history
from ance_cli.formats.dataset import read_qrels
from ance_cli.formats.jsonl import read_records
from ance_cli.formats.ledgers import read_ledger
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.loop import generation_table
from benchmarks.study.cell import Collect, Outcome

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


def documents_asked_for(label: str, data: str) -> Collect:
    """A number for the document of each test query (the first of its most relevant), in the order
    of the sorted query ids: queries on one document are not independent of each other."""

    def collect(outcome: Outcome) -> dict[str, Any]:
        qrels = read_qrels(outcome.places.path(data) / "qrels" / "test.tsv")
        firsts = [min(labels, key=lambda doc_id: (-labels[doc_id], doc_id))
                  for _, labels in sorted(qrels.items())]  # fmt: skip
        numbers = {document: number for number, document in enumerate(sorted(set(firsts)))}
        return {f"documents {label}": [numbers[document] for document in firsts]}

    return collect


def reached(table: str) -> Collect:
    """Whether each query, in the order of the sorted ids, has a positive among a run's first 100:
    by the per-query values of R@100 at `table`."""

    def collect(outcome: Outcome) -> dict[str, Any]:
        (values,) = read_per_query(outcome.places.path(table), "R@100").values()
        return {"reached": [int(value > 0) for _, value in sorted(values.items())]}

    return collect


def training_curves(run: str) -> Collect:
    """The log of a run, when new negatives came into use, and each refresh: age, drift, dev."""

    def collect(outcome: Outcome) -> dict[str, Any]:
        folder = RunFolder(outcome.places.path(run))
        history = read_history(folder.path, {})
        return {
            "series": {
                "training": history["training"],
                "switches": history["switches"],
                "generations": generation_table(folder),
            }
        }

    return collect


def learning(run: str, steps: int) -> Collect:
    """What the last steps had to learn: of the lines of the log in them, the mean loss and the
    median norm of the gradient. Also how far the whole run moved the weights."""

    def collect(outcome: Outcome) -> dict[str, Any]:
        folder = RunFolder(outcome.places.path(run))
        lines = read_ledger(folder.metrics)
        last = [line for line in lines if line["step"] > lines[-1]["step"] - steps]
        return {
            "learning": {
                "loss": statistics.mean(line["loss"] for line in last),
                "grad_norm": statistics.median(line["grad_norm"] for line in last),
                "moved": moved(
                    folder.checkpoint(0).path, folder.checkpoint(lines[-1]["step"]).path
                ),
            }
        }

    return collect


def moved(first: Path, last: Path) -> float:
    """The norm of the difference of two checkpoints' weights, over the norm of the first's."""
    change = whole = 0.0
    for file in first.rglob("*.safetensors"):
        after = load_file(last / file.relative_to(first))
        for name, before in load_file(file).items():
            change += float(np.square(after[name] - before, dtype=np.float64).sum())
            whole += float(np.square(before, dtype=np.float64).sum())
    return math.sqrt(change / whole)


def by_answer_depth(label: str, data: str) -> Collect:
    """The measure of each query in thirds of `metadata.answer_word_offset`, the answer's place.

    A third ends at the offset that a third of the queries do not exceed, so that queries of one
    offset are in one third.
    """

    def collect(outcome: Outcome) -> dict[str, Any]:
        offsets = answer_offsets(outcome.places.path(data) / "queries.jsonl")
        table = next(
            Path(words[words.index("--per-query") + 1])
            for words in outcome.commands
            if "--per-query" in words and label_of(words[1]) == label
        )
        (values,) = read_per_query(table, _BY_DEPTH).values()
        return {f"by_depth {label}": thirds(values, offsets)}

    return collect


_BY_DEPTH = "RR@10"


def answer_offsets(queries: Path) -> dict[str, int]:
    """query_id -> the word of the document at which its answer begins."""
    return {
        str(record["_id"]): int(record["metadata"]["answer_word_offset"])
        for _, record in read_records(queries)
        if "answer_word_offset" in (record.get("metadata") or {})
    }


def thirds(values: Mapping[str, float], offsets: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each third of the queries by offset: its offsets, how many there are, and their mean."""
    known = sorted(offsets[query_id] for query_id in values if query_id in offsets)
    if not known:
        return []
    edges = [-1, known[len(known) // 3], known[2 * len(known) // 3], known[-1]]
    rows = []
    for above, last in pairwise(edges):
        own = [v for name, v in values.items() if name in offsets and above < offsets[name] <= last]
        if own:
            rows.append(
                {
                    "from": above + 1,
                    "to": last,
                    "queries": len(own),
                    _BY_DEPTH: round(sum(own) / len(own), _DIGITS),
                }
            )
    return rows


def report_at(path: str) -> Collect:
    """The parts of a diagnosis that tables and figures are made of."""

    def collect(outcome: Outcome) -> dict[str, Any]:
        report = orjson.loads(outcome.places.path(path).read_bytes())
        return {"diagnosis": rounded({name: report[name] for name in _DIAGNOSIS if name in report})}

    return collect


_DIAGNOSIS = ("queries", "documents", "parameters", "samplers", "bound", "batch",
              "reciprocal_rank", "long_tail", "history")  # fmt: skip


def rounded(value: Any) -> Any:
    """Numbers to six significant digits; fields that name a path of this machine are dropped."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {
            name: rounded(part)
            for name, part in value.items()
            if not (isinstance(part, str) and Path(part).is_absolute())
        }
    return [rounded(part) for part in value] if isinstance(value, list) else value


def figures_told(outcome: Outcome) -> dict[str, Any]:
    """What each command's summary says of its work."""
    return {"told": [{name: value for name, value in rounded(dict(summary)).items()
                      if name not in _LOCAL} for summary in outcome.summaries]}  # fmt: skip


_LOCAL = ("output", "fingerprint", "up_to_date", "audit")


def step_rate(run: str) -> Collect:
    """Steps a second, the median over the log but its first line, which is a cold start."""

    def collect(outcome: Outcome) -> dict[str, Any]:
        log = read_ledger(RunFolder(outcome.places.path(run)).metrics)
        rates = [line["steps_per_s"] for line in log[1:]]
        return {"steps_per_s": round(statistics.median(rates), _DIGITS)}

    return collect
