"""`docs/evidence/study/tables.md` and its figures: what is there, and what is missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

from ance_cli.formats import atomic
from benchmarks.study import plots, tables
from benchmarks.study.cell import Cell
from benchmarks.study.results import Result

_ITEMS: tuple[tuple[str, str, Callable[[Mapping[str, Result]], str], str, str], ...] = (
    ("Where the negatives come from", "medquad table1", tables.arms_table, "arms",
     "Test split of medquad, equal steps; with several seeds the mean ± the standard deviation. "
     "*Rerank* is the same measure over BM25's top 100 in the arm's order; next to the difference, "
     "the same over the queries that have a positive among those 100. The tests are paired, over "
     "queries: the values of one query are averaged over the seeds that both arms have; Holm "
     "corrects over the rows. *Loss* is the mean of the last 300 steps; *gradient norm* the median "
     "over every tenth of them, and with several seeds the mean of their medians. The rate falls "
     "to 0 in a line over all steps of a run, so that the last 300 of 900 have lower ones than "
     "the 300 after a warm-up. *Weights moved*: the norm of their change in all steps of the run, "
     "over the norm of those that it began with."),
    ("MaxP against FirstP", "documents", tables.documents_table, "documents",
     "Trained on medquad_doc; covidqa was not trained on. *Shallow*, *middle* and *deep* are "
     "thirds of the queries by the word of the document at which the answer begins. The tests flip "
     "the signs of all queries of one document together (800 documents of medquad_doc, 29 papers "
     "of covidqa): they are not independent."),
    ("Answers to questions", "openqa", tables.openqa_table, "openqa",
     "Share of squad's test questions with an answer among the first 20 and 100 passages. No "
     "negative held an answer."),
    ("The asynchronous gap", "gap", tables.gap_table, "gap",
     "300 steps from one warm-up; the top 200, and every 150 steps, where the name says nothing "
     "else (`async-`: every 50, trainer and refresh daemon at the same time). The probe's overlap "
     "is between successive checkpoints that were refreshed from: the least is the greatest "
     "drift. *Loss* is the mean of the last 50 steps."),
    ("Refreshing over epochs", "epochs", tables.epochs_table, "",
     "900 steps, two and a quarter epochs, from the same warm-up and from the top 50: mined once, "
     "before the first step, or every 300 steps. The columns are those of the table above."),
    ("Theory", "theory", tables.theory_table, "theory-",
     "24 training queries of medquad; the samplers draw from the top 100. "
     "[Method](../../explanations/method.md#the-theory-on-your-own-data) explains the columns. A "
     "few of the queries dominate the means; the median next to them is over the same draws."),
    ("After ANCE", "later", tables.later_table, "later",
     "300 steps from one warm-up, mined again after 150 (ADORE retrieves at each step). Paired "
     "tests over queries against uniform ANCE; Holm corrects over the rows. The other columns are "
     "those of the first table."),
    ("Cost", "cost", tables.cost_table, "",
     "Each operation by itself, without other work on the machine: the last row is the load."),
)  # fmt: skip
"""Title, beginnings of the cells' names, table, beginning of the figures' names, what to know."""


def write(cells: Mapping[str, Cell], results: Mapping[str, Result], folder: Path) -> list[str]:
    """Write the page and the figures into `folder`; returns the names of the files."""
    figures = plots.drawn(results)
    names = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
        atomic.write_bytes(folder / f"{name}.svg", buffer.getvalue())
        names.append(f"{name}.svg")
    atomic.write_bytes(folder / "tables.md", page(cells, results, list(figures)).encode())
    return [*names, "tables.md"]


def page(cells: Mapping[str, Cell], results: Mapping[str, Result], figures: list[str]) -> str:
    """The text of the page."""
    parts = [
        "# The study, in tables",
        "`python -m benchmarks.study table` writes this page from `results.jsonl`. "
        f"[The study](../reproduce.md#the-study) explains how to run it. {_made_on(results)}",
    ]
    for title, prefixes, table, figure, words in _ITEMS:
        own = [name for name in cells if name.split("/")[0] in prefixes.split()]
        missing = [name for name in own if name not in results]
        parts += [f"## {title}", words]
        parts.append(table(results) or "Nothing to show yet.")
        parts += [f"![{name}]({name}.svg)" for name in figures if figure and _is_of(name, figure)]
        if missing:
            parts.append(f"Missing: {', '.join(f'`{name}`' for name in missing)}.")
    return "\n\n".join(parts) + "\n"


def _is_of(name: str, figure: str) -> bool:
    return name == figure or (figure.endswith("-") and name.startswith(figure))


def _made_on(results: Mapping[str, Result]) -> str:
    """The machines and days of the results."""
    if not results:
        return "No cell is done."
    machines = {}
    for result in results.values():
        found = result["machine"]
        gpus = f", {', '.join(found['gpus'])}" if found["gpus"] else ", no GPU"
        words = f"{found['cores']} cores of {found['cpu']}{gpus}"
        machines[words] = machines.get(words, 0) + 1
    days = sorted({result["date"][:10] for result in results.values()})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    told = "; ".join(f"{words} ({count} cells)" for words, count in machines.items())
    return f"Machine: {told}; {span}."
