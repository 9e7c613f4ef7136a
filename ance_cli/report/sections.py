"""The sections that tell of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ance_cli.loop.status_schema import Refresh
from ance_cli.report import charts
from ance_cli.report import formatting as words
from ance_cli.report.facts import RunFacts
from ance_cli.report.layout import Section, Table


def overview(run: RunFacts) -> Section:
    """Where the run stands and what came of it."""
    status = run.status
    training = status.training
    told = {
        "state": status.state + (f": {status.reason}" if status.reason else ""),
        "kind": {"sync": "loop, in turn", "async": "loop, side by side"}.get(
            status.mode or "", "stages"
        ),
        "steps": words.count(training.step)
        + (f" of {words.count(training.last_step)}" if training.last_step is not None else ""),
        "generations": words.count(len(run.generations)),
    }
    if best := run.best:
        told["best generation"] = f"{best.number}, from step {words.count(best.step)}"
        first = next(each for each in run.generations if each.dev)
        for measure, value in best.dev.items():
            before = first.dev.get(measure) if first is not best else None
            told[f"its dev {measure}"] = words.measure(value.mean) + (
                f" (the first's {words.measure(before.mean)})" if before else ""
            )
    if training.loss is not None:
        told["last loss"] = words.figure(training.loss)
    seconds = [generation.refresh.seconds.get("all", 0.0) for generation in run.generations]
    if sum(seconds):
        told["refreshes took"] = f"{words.figure(sum(seconds))} s"
    told["on disk"] = words.size(status.disk["all"])
    return Section("overview", "Overview", facts=[("", told)])


def configuration(run: RunFacts) -> Section:
    """What was fixed when the run began."""
    made = run.made
    start = {
        "start checkpoint": made.get("start_checkpoint"),
        "with a fresh head": made.get("fresh_head"),
        **(made.get("data") or {}),
        "created": made.get("created"),
        "made by ance": made.get("tool_version"),
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
        text=["As it was fixed when the run began; null stands for what the start checkpoint has."],
        facts=[
            (title, {name: words.setting(value) for name, value in group.items()})
            for title, group in groups.items()
            if group
        ],
    )


def lineage(run: RunFacts) -> Section:
    """What made what, and what was trained on when."""
    made = Table(
        "What made what: checkpoint, its embeddings of the corpus, and the negatives mined with "
        f"them, by the first {words.FINGERPRINT} digits of their fingerprints",
        ["generation", "from step", "published", "query tower", "passage tower", "embeddings",
         "negatives", "trained on at steps"],
        [
            [
                words.count(each.number),
                words.count(each.step),
                words.moment(each.refresh.published),
                words.short(each.query_tower),
                words.short(each.passage_tower),
                words.short(each.embeddings),
                words.short(each.negatives),
                ", ".join(
                    f"{words.count(stretch.first)} to {words.count(stretch.last)}"
                    for stretch in run.stretches
                    if stretch.generation == each.number
                )
                or words.NOTHING,
            ]
            for each in run.generations
        ],
        frozenset({0, 2, 3, 4, 5, 6, 7}),
    )  # fmt: skip
    used = Table(
        "What was trained on, in order",
        ["negatives", "after step", "to step", "mined at step", "age then", "age at the end"],
        [
            [
                stretch.source,
                words.count(stretch.first),
                words.count(stretch.last),
                words.count(stretch.mined_at),
                *map(words.count, stretch.ages or (None, None)),
            ]
            for stretch in run.stretches
        ],
    )
    return Section(
        "lineage",
        "Lineage",
        nothing="Nothing was refreshed and nothing was trained.",
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
        nothing="There is no line in the log.",
        charts=[charts.loss_chart(run), charts.gradient_chart(run)],
        facts=[("The last line of the log", {n: words.figure(last[n]) for n in shown if n in last})]
        if last
        else [],
    )


def staleness(run: RunFacts) -> Section:
    """How old negatives were, and how much each refresh changed."""
    shown: dict[str, Callable[[Refresh], float | None]] = {
        "age when published": lambda refresh: refresh.age,
        "share of the earlier one used": lambda refresh: refresh.consumed,
        "overlap of the probe's rankings": lambda refresh: refresh.probe_overlap,
        "negatives kept": lambda refresh: refresh.overlap_with_earlier,
        "negatives changed": lambda refresh: refresh.churn_against_earlier,
    }
    by_generation = Table(
        "Each generation against the one before it; ages in steps",
        ["generation", "step", *shown],
        [
            [
                words.count(each.number),
                words.count(each.step),
                *(words.figure(value(each.refresh)) for value in shown.values()),
            ]
            for each in run.generations
        ],
    )
    measured = Table(
        "Drift measured while training",
        ["time", "step", "against generation", "overlap", "refreshed"],
        [
            [
                words.moment(drift.get("time")),
                words.figure(drift.get("checkpoint_step")),
                words.figure(drift.get("generation")),
                words.figure(drift.get("overlap")),
                "yes" if drift.get("refresh") else "no",
            ]
            for drift in run.drifts
        ],
    )
    return Section(
        "staleness",
        "Staleness and drift",
        nothing="There is no generation.",
        charts=[charts.age_chart(run), charts.drift_chart(run)],
        tables=[by_generation, measured],
    )


def audit(run: RunFacts) -> Section:
    """What mining removed, what it lacked, and how negatives score."""
    audited = [generation for generation in run.generations if generation.audit]
    counts: dict[str, dict[int, str]] = {}
    spreads: list[list[str]] = []
    for generation in audited:
        for name, value in _flat(generation.audit):
            if isinstance(value, dict):
                spreads.append([
                    name, words.count(generation.number),
                    *(words.figure(value.get(end)) for end in ("p5", "p25", "p50", "p75", "p95")),
                ])  # fmt: skip
            else:
                counts.setdefault(name, {})[generation.number] = words.figure(value)
    spreads.sort(key=lambda row: row[0])
    return Section(
        "audit",
        "Audit of the negatives",
        nothing="No negatives were mined.",
        charts=[charts.score_chart(run)],
        tables=[
            Table(
                "Counts and shares by generation",
                ["generation", *(words.count(generation.number) for generation in audited)],
                [
                    [name, *(values.get(g.number, words.NOTHING) for g in audited)]
                    for name, values in counts.items()
                ],
            ),
            Table(
                "Ranks, scores and margins of the negatives",
                ["of", "generation", "5 %", "25 %", "50 %", "75 %", "95 %"],
                spreads,
            ),
        ],
    )


def _flat(audit: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The figures of an audit by name; quantiles stay together."""
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
        nothing="There is no generation.",
        charts=[charts.cost_chart(run)],
        tables=[
            Table(
                "Seconds of each stage, and size when it was published",
                ["generation", "step", *(f"{name} s" for name in stages), "size"],
                [
                    [
                        words.count(each.number),
                        words.count(each.step),
                        *(words.figure(each.refresh.seconds.get(name)) for name in stages),
                        words.size(each.num_bytes),
                    ]
                    for each in run.generations
                ],
            )
        ],
    )


def failures(run: RunFacts) -> Section:
    """The last events of a failure."""
    return Section(
        "failures",
        "What went wrong",
        nothing="No event tells of a failure.",
        tables=[
            Table(
                "The last events of something that died, failed, was refused or diverged",
                ["time", "who", "what", "more"],
                [
                    [words.moment(problem.time), problem.who, problem.what,
                     ", ".join(f"{name} {value}" for name, value in problem.facts.items())]
                    for problem in run.status.problems
                ],
                frozenset(range(4)),
            )
        ],
    )  # fmt: skip
