"""The sections about one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ance_cli.loop.status_schema import Refresh, explained, shown_event, shown_role
from ance_cli.report import charts, formatting
from ance_cli.report.facts import ReportFacts, RunFacts, means_of_files
from ance_cli.report.layout import Section, Table


def overview(facts: ReportFacts) -> Section:
    """What the run trains and on what, its state, and its results beside those of rankings."""
    run = facts.run
    status, training, data = run.status, run.status.training, run.made.get("data") or {}
    shown = {
        "start checkpoint": str(run.made.get("start_checkpoint", "-")),
        "corpus": str(data.get("corpus", "-")),
        "state": status.state + (f": {status.reason}" if status.reason else ""),
        "kind": {"sync": "loop, synchronous", "async": "loop, asynchronous"}.get(
            status.mode or "", "stages"
        ),
        "steps": formatting.count(training.step)
        + (f" of {formatting.count(training.last_step)}" if training.last_step is not None else ""),
        "generations": formatting.count(len(run.generations)),
    }
    if best := run.best:
        shown["best generation"] = f"{best.number}, from step {formatting.count(best.step)}"
        first = next(each for each in run.generations if each.dev)
        for measure, value in best.dev.items():
            before = first.dev.get(measure) if first is not best else None
            others = {"first generation": before.mean} if before else {}
            others |= means_of_files(facts, measure)
            beside = "; ".join(f"{name}: {formatting.measure(x)}" for name, x in others.items())
            shown[f"best dev {measure}"] = formatting.measure(value.mean) + (
                f" ({beside})" if beside else ""
            )
    shown |= explained(status)
    if training.loss is not None:
        shown["last loss"] = formatting.figure(training.loss)
    seconds = [generation.refresh.seconds.get("all", 0.0) for generation in run.generations]
    if sum(seconds):
        shown["time of all refreshes"] = f"{formatting.figure(sum(seconds))} s"
    shown["size on disk"] = formatting.size(status.disk["all"])
    return Section("overview", "Overview", facts=[("", shown)])


def configuration(run: RunFacts) -> Section:
    """The settings that were fixed when the run began."""
    made = run.made
    start = {
        "start checkpoint": made.get("start_checkpoint"),
        "new head": made.get("fresh_head"),
        **(made.get("data") or {}),
        "created": made.get("created"),
        "ance version": made.get("tool_version"),
    }
    groups: dict[str, Mapping[str, Any]] = {
        "Data and start": {name: value for name, value in start.items() if value is not None},
        "Training": made.get("identity") or {},
        "Refreshes": run.refreshing,
        "Loop": run.looping,
    }
    return Section(
        "configuration",
        "Configuration",
        nothing="run.json could not be read.",
        folded=True,
        text=[
            "These settings were fixed when the run began; null means as in the start checkpoint."
        ],
        facts=[
            (title, {name: formatting.setting(value) for name, value in group.items()})
            for title, group in groups.items()
            if group
        ],
    )


def lineage(run: RunFacts) -> Section:
    """What each generation was made from, and which steps were trained on it."""
    made = Table(
        "Inputs of each generation: checkpoint, embeddings of the corpus and negatives, by the "
        f"first {formatting.FINGERPRINT} digits of their fingerprints",
        ["generation", "checkpoint step", "published", "query tower", "passage tower", "embeddings",
         "negatives", "trained on at steps"],
        [
            [
                formatting.count(each.number),
                formatting.count(each.step),
                formatting.moment(each.refresh.published),
                formatting.short(each.query_tower),
                formatting.short(each.passage_tower),
                formatting.short(each.embeddings),
                formatting.short(each.negatives),
                ", ".join(
                    f"{formatting.count(stretch.first)} to {formatting.count(stretch.last)}"
                    for stretch in run.stretches
                    if stretch.generation == each.number
                )
                or formatting.NOTHING,
            ]
            for each in run.generations
        ],
        frozenset({0, 2, 3, 4, 5, 6, 7}),
    )  # fmt: skip
    used = Table(
        "Negatives in the order of training",
        [
            "negatives",
            "after step",
            "to step",
            "mined at step",
            "first age",
            "last age",
        ],
        [
            [
                stretch.source,
                formatting.count(stretch.first),
                formatting.count(stretch.last),
                formatting.count(stretch.mined_at),
                *map(formatting.count, stretch.ages or (None, None)),
            ]
            for stretch in run.stretches
        ],
    )
    return Section(
        "lineage",
        "Lineage",
        nothing="The run has no refreshes and no training yet.",
        charts=[charts.lineage_chart(run)],
        tables=[made, used],
    )


def training(run: RunFacts) -> Section:
    """Loss and gradient norms."""
    last = run.log[-1] if run.log else {}
    shown = ("step", "epoch", "loss", "lr", "grad_norm", "tokens_per_s", "steps_per_s", "mfu")
    return Section(
        "training",
        "Loss and gradients",
        nothing="The training log is empty.",
        charts=[charts.loss_chart(run), charts.gradient_chart(run)],
        facts=[
            (
                "Last line of the training log",
                {n: formatting.figure(last[n]) for n in shown if n in last},
            )
        ]
        if last
        else [],
    )


def staleness(run: RunFacts) -> Section:
    """The age of the negatives, and how much each refresh changed."""
    shown: dict[str, Callable[[Refresh], float | None]] = {
        "age when published": lambda refresh: refresh.age,
        "epochs on the generation before": lambda refresh: refresh.consumed,
        "overlap of the probe's rankings": lambda refresh: refresh.probe_overlap,
        "negatives kept": lambda refresh: refresh.overlap_with_earlier,
        "negatives changed": lambda refresh: refresh.churn_against_earlier,
    }
    by_generation = Table(
        "Each generation compared with the generation before; ages in steps",
        ["generation", "step", *shown],
        [
            [
                formatting.count(each.number),
                formatting.count(each.step),
                *(formatting.figure(value(each.refresh)) for value in shown.values()),
            ]
            for each in run.generations
        ],
    )
    measured = Table(
        "Drift measured while training",
        ["time", "step", "generation", "overlap", "refreshed"],
        [
            [
                formatting.moment(drift.get("time")),
                formatting.figure(drift.get("checkpoint_step")),
                formatting.figure(drift.get("generation")),
                formatting.figure(drift.get("overlap")),
                "yes" if drift.get("refresh") else "no",
            ]
            for drift in run.drifts
        ],
    )
    return Section(
        "staleness",
        "Staleness and drift",
        nothing="The run has no generation yet.",
        charts=[charts.age_chart(run), charts.drift_chart(run)],
        tables=[by_generation, measured],
    )


def audit(run: RunFacts) -> Section:
    """What mining removed, what was missing, and the scores of the negatives."""
    audited = [generation for generation in run.generations if generation.audit]
    counts: dict[str, dict[int, str]] = {}
    spreads: list[list[str]] = []
    for generation in audited:
        for name, value in _flat(generation.audit):
            if isinstance(value, dict):
                quantiles = [value.get(end) for end in ("p5", "p25", "p50", "p75", "p95")]
                number = formatting.count(generation.number)
                spreads.append([name, number, *map(formatting.figure, quantiles)])
            else:
                counts.setdefault(name, {})[generation.number] = formatting.figure(value)
    spreads.sort(key=lambda row: row[0])
    return Section(
        "audit",
        "Audit of the negatives",
        nothing="No negatives were mined.",
        charts=[charts.score_chart(run)],
        tables=[
            Table(
                "Counts and shares by generation",
                ["generation", *(formatting.count(generation.number) for generation in audited)],
                [
                    [name, *(values.get(g.number, formatting.NOTHING) for g in audited)]
                    for name, values in counts.items()
                ],
            ),
            Table(
                "Ranks, scores and margins of the negatives",
                ["quantity", "generation", "5 %", "25 %", "50 %", "75 %", "95 %"],
                spreads,
            ),
        ],
    )


def _flat(audit: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The figures of an audit by name; the quantiles of one figure stay together."""
    for key, value in audit.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict) and "p50" not in value:
            yield from _flat(value, f"{name}: ")
        else:
            yield name, value


def cost(run: RunFacts) -> Section:
    """Seconds of each stage of each refresh."""
    stages = dict.fromkeys(name for g in run.generations for name in g.refresh.seconds)
    return Section(
        "cost",
        "Cost of each refresh",
        nothing="The run has no generation yet.",
        charts=[charts.cost_chart(run)],
        tables=[
            Table(
                "Seconds of each stage, and the size at publication",
                ["generation", "step", *(f"{name} s" for name in stages), "size"],
                [
                    [
                        formatting.count(each.number),
                        formatting.count(each.step),
                        *(formatting.figure(each.refresh.seconds.get(name)) for name in stages),
                        formatting.size(each.num_bytes),
                    ]
                    for each in run.generations
                ],
            )
        ],
    )


def failures(run: RunFacts) -> Section:
    """The last events that report a failure."""
    return Section(
        "failures",
        "Errors",
        nothing="No event reports a failure.",
        tables=[
            Table(
                "The last events in which a process died or failed, training diverged, or a "
                "generation was refused",
                ["time", "process", "event", "details"],
                [
                    [formatting.moment(problem.time), shown_role(problem.who),
                     shown_event(problem.what),
                     ", ".join(f"{name} {value}" for name, value in problem.facts.items())]
                    for problem in run.status.problems
                ],
                frozenset(range(4)),
            )
        ],
    )  # fmt: skip
