"""The sections that compare generations and baselines, by their measures and query by query."""

from __future__ import annotations

from typing import Any

from ance_cli.report import charts, formatting
from ance_cli.report.facts import Comparison, Mean, ReportFacts, RunFacts, means_of_files
from ance_cli.report.layout import Case, CaseGroup, Document, Section, Table


def measures_by_generation(facts: ReportFacts) -> Section:
    """Each dev measure of the run and of the runs it is compared with, and the tests."""
    runs = [facts.run, *(each.run for each in facts.baselines if each.run is not None)]
    incomparable = {each.label for each in facts.baselines if not each.comparable}
    measured = [(run, each) for run in runs for each in run.generations if each.dev]
    measures = list(dict.fromkeys(name for _, each in measured for name in each.dev))
    rows = [
        [
            run.label + (" (other data, split or depth)" if run.label in incomparable else ""),
            f"{each.number}{' (best)' if each is run.best else ''}",
            formatting.count(each.step),
            *(formatting.mean(each.dev.get(measure)) for measure in measures),
        ]
        for run, each in measured
    ]
    tables = [Table("Means with 95 % intervals", ["run", "generation", "step", *measures], rows)]
    if facts.run.status.guard:
        tables.append(_on_guard(facts.run))
    if facts.against:
        tables.append(_tested("Baselines against the best generation", facts.against))
    return Section(
        "measures",
        "Measures by generation",
        nothing="No generation was measured on a dev split.",
        charts=[
            chart
            for measure in measures
            for chart in (
                charts.measure_chart(measure, runs, means_of_files(facts, measure)),
                charts.guard_chart(measure, facts.run),
            )
        ],
        tables=tables,
    )


def _on_guard(run: RunFacts) -> Table:
    """Each generation's measures on the guard, and how far the first one is below the start's."""
    measured = [each for each in run.generations if each.guard]
    measures = list(dict.fromkeys(name for each in measured for name in each.guard))
    fall = f"fall (at most {formatting.figure(run.status.guard_margin)})"
    return Table(
        f"Means on the guard {run.status.guard} with 95 % intervals",
        ["generation", "step", *measures, fall],
        [
            [
                formatting.count(each.number),
                formatting.count(each.step),
                *(formatting.mean(each.guard.get(measure)) for measure in measures),
                formatting.measure(each.refresh.guard_fall),
            ]
            for each in measured
        ],
    )


def _tested(caption: str, comparison: Comparison) -> Table:
    """The table of `ance eval`: the other rankings are tested against the first."""
    several = len(comparison.runs) > 2
    rows = []
    for measure in comparison.runs[-1]["measures"]:
        for label, row in zip(comparison.labels, comparison.runs, strict=True):
            value = row["measures"].get(measure)
            if value is None:
                continue
            difference = value.get("difference")
            p = [value.get(name) for name in ("p_randomisation", "p_t", "p_randomisation_holm")]
            rows.append([
                label, measure, formatting.mean(Mean(value["mean"], value["low"], value["high"])),
                formatting.NOTHING if difference is None else f"{difference:+.4f}",
                *map(formatting.probability, p[: 2 + several]),
            ])  # fmt: skip
    head = ["ranking", "measure", "mean", "difference from the first", "p", "p (t)"]
    return Table(caption, [*head, "p (Holm)"] if several else head, rows, frozenset({0, 1}))


def cases(comparison: Comparison | None) -> Section:
    """The queries on which two generations differ most, with their documents."""
    if comparison is None:
        return Section(
            "cases", "Cases", nothing="There are no two rankings of the dev queries to compare."
        )
    (first, second), found = comparison.labels, comparison.runs[1]["cases"]
    return Section(
        "cases",
        "Cases",
        text=[
            f"The dev queries on which {first} and {second} differ most. Each document is shown "
            "with its rank in both, and with its label if it has one."
        ],
        tables=[_tested(f"{first} and {second}", comparison)],
        cases=[
            CaseGroup(
                f"{second} {how} than {first} by {found['measure']}",
                [_case(case) for case in found[kind]],
            )
            for kind, how in (("wins", "better"), ("losses", "worse"))
        ],
    )


def _case(case: dict[str, Any]) -> Case:
    return Case(
        query_id=case["query_id"],
        query=case["query"],
        change=formatting.change(*(formatting.measure(case[name]) for name in ("first", "second"))),
        documents=[
            Document(
                doc_id=document["doc_id"],
                ranks=formatting.change(
                    *(formatting.figure(document[name]) for name in ("first_rank", "second_rank"))
                ),
                label=document["relevance"],
                title=document["title"],
                text=formatting.beginning(document["text"]),
            )
            for document in case["documents"]
        ],
    )
