"""`ance report`: a run on one page, from its folder and the rankings that its refreshes wrote.

It only reads the run and takes no lease. The page lists what is absent, incomplete or damaged, and
shows the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ance_cli.call import Call
from ance_cli.config import REPORT_CASES
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.evaluation.evaluate import evaluate_runs
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.jsonl import is_stream, open_output
from ance_cli.formats.ledgers import Switch
from ance_cli.formats.manifest import check_files
from ance_cli.formats.plan import KEEP
from ance_cli.formats.run_folder import LOOP, REFRESH, RUN, RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.loop.refresh_config import labels_of_split
from ance_cli.loop.run_records import (
    AuditRecord,
    Event,
    GenerationManifest,
    LogLine,
    LoopRecord,
    MeasureRecord,
    NegativesManifest,
    RefreshRecord,
    RunRecord,
    SegmentLine,
)
from ance_cli.loop.status import status
from ance_cli.loop.status_schema import Refresh
from ance_cli.loop.tolerant_io import fitting, object_in, records_in
from ance_cli.report.charts import need_matplotlib
from ance_cli.report.facts import (
    Baseline,
    Comparison,
    Generation,
    Mean,
    ReportFacts,
    RunFacts,
    stretches_of,
)
from ance_cli.report.page import page_of

T = TypeVar("T")

_OURS = b'<meta name="generator" content="ance '
"""In the head of every report, by which an earlier one is recognised."""


def report(
    path: Path,
    output: Path,
    against: Sequence[Path] = (),
    cases: int = REPORT_CASES,
    call: Call = Call(),
) -> Summary:
    """Write the page of a run in its present state; replaces an earlier report.

    `against` names other runs (folders) and rankings of the dev queries (TREC runs) to compare the
    run with. `cases` is the number of wins, and of losses, of the best generation against the first
    to show. Raises `BadInput` if there is no run, and `Mismatch` if the output exists and is not a
    report.
    """
    need_matplotlib()
    if cases < 0:
        raise UsageProblem("--cases must not be negative")
    _check_output(output)
    facts = report_facts(path, against, cases, call)
    page = page_of(facts).encode()
    with open_output(output) as handle:
        handle.write(page)
    for what in facts.missing:
        call.reporter.warn(what)
    return {
        "output": str(output),
        "kind": "report",
        "run": str(path),
        "num_generations": len(facts.run.generations),
        "missing": facts.missing,
    }


def _check_output(output: Path) -> None:
    if is_stream(output) or not output.exists():
        return
    if output.is_dir():
        raise UsageProblem(f"{output}: is a folder, expected a file", hint="name a file with -o")
    with open(output, "rb") as handle:
        if _OURS not in handle.read(4096):
            raise Mismatch(f"{output}: exists and is not a report", hint=KEEP)


def report_facts(
    path: Path,
    against: Sequence[Path] = (),
    cases: int = REPORT_CASES,
    call: Call = Call(),
) -> ReportFacts:
    """The facts that the page of a run shows."""
    labels = _labels([path, *against])
    run = run_facts(path, labels[0])
    baselines = [
        _baseline(each, label, run) for each, label in zip(against, labels[1:], strict=True)
    ]
    missing = [*run.damage, *(what for each in baselines if each.run for what in each.run.damage)]

    def unless_damaged(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except (BadInput, Mismatch) as problem:  # the page lists it as missing
            missing.append(problem.what)
            return None

    best, pair = run.best, _pair(run)
    rankings = [(_ranked_by(each.label, each.run), each.ranking)
                for each in baselines if each.ranking]  # fmt: skip
    against_best = compared = None
    if rankings and not (best and best.dev_run):
        missing.append(f"{path}: no generation has a ranking of the dev queries to test against")
    is_measured = "data" in run.made and {"measures", "dev_split"} <= run.refreshing.keys()
    if best and is_measured and (rankings or (pair and cases)):
        measures = run.refreshing["measures"]
        data = unless_damaged(lambda: _dev_data(path, run))
        if data and rankings and best.dev_run:
            named = [(_ranked_by(run.label, run), best.dev_run), *rankings]
            against_best = unless_damaged(lambda: _compare(named, data, measures, 0, call))
        if data and pair and cases:
            two = [(f"generation {g.number}", g.dev_run) for g in pair if g.dev_run]
            compared = unless_damaged(lambda: _compare(two, data, measures, cases, call))
    return ReportFacts(run, baselines, against_best, compared, missing)


# ---------------------------------------------------------------- one run


def run_facts(path: Path, label: str) -> RunFacts:
    """What the folder of a run contains, and which of its files could not be read."""
    found = status(path)
    run = RunFolder(path)
    damage: list[str] = []
    log = records_in(run.metrics, LogLine, damage)
    generations = [
        _generation(run, refresh.generation, refresh, damage) for refresh in found.refreshes
    ]
    whole = {generation.number for generation in generations}
    for each in run.all_generations():
        if each.number not in whole:
            damage.append(f"{each.manifest}: has no facts about generation {each.number}")
    made = object_in(path / RUN, RunRecord, damage)
    if not made.get("identity"):
        damage.append(f"{path / RUN}: has no settings of the run")
    return RunFacts(
        label=label,
        status=found,
        made=made,
        refreshing=object_in(path / REFRESH, RefreshRecord, damage),
        looping=object_in(path / LOOP, LoopRecord, damage),
        log=log,
        stretches=stretches_of(
            records_in(run.segments, SegmentLine, damage),
            records_in(run.switches, Switch, damage),
            {generation.number: generation.step for generation in generations},
            found.training.step,
        ),
        drifts=[
            event
            for event in records_in(run.events, Event, damage)
            if event.get("what") == "drift measured"
        ],
        generations=generations,
        damage=damage,
    )


def _generation(run: RunFolder, number: int, refresh: Refresh, damage: list[str]) -> Generation:
    folder = run.generation(number)
    manifest = object_in(folder.manifest, GenerationManifest, damage)
    mined = object_in(folder.negatives_manifest, NegativesManifest, damage)
    if (manifest.get("content") or {}).get("files_xxh3"):
        try:
            check_files(folder.path, manifest, None)
        except BadInput as problem:
            damage.append(problem.what)
    inputs = manifest.get("inputs") or {}
    return Generation(
        refresh=refresh,
        dev=_means(refresh.dev, folder.dev, damage),
        guard=_means(refresh.guard, folder.guard, damage),
        audit=fitting(
            (manifest.get("stats") or {}).get("audit"),
            AuditRecord | None,
            f"{folder.manifest}: audit",
            damage,
        ),
        query_tower=inputs.get("query_tower"),
        passage_tower=inputs.get("passage_tower"),
        embeddings=(mined.get("inputs") or {}).get("vectors"),
        negatives=mined.get("fingerprint"),
        dev_run=folder.dev_run if folder.dev_run.exists() else None,
        num_bytes=sum(((manifest.get("content") or {}).get("files") or {}).values()),
    )


def _means(means: dict[str, float], path: Path, damage: list[str]) -> dict[str, Mean]:
    """The means of a manifest, with the intervals in `dev.json` or `guard.json`."""
    measured = object_in(path, dict[str, MeasureRecord], damage)
    return {
        name: Mean(mean, measured.get(name, {}).get("low"), measured.get(name, {}).get("high"))
        for name, mean in means.items()
    }


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last part of each path if it is unique, otherwise the whole path."""
    short = [path.resolve().name for path in paths]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, paths, strict=True)
    ]


# ---------------------------------------------------------------- against others, and cases


def _baseline(path: Path, label: str, run: RunFacts) -> Baseline:
    if path.is_file():
        return Baseline(label, None, path)
    other = run_facts(path, label)
    comparable = _measured_on(other) == _measured_on(run)
    best = other.best
    return Baseline(label, other, best.dev_run if best and comparable else None, comparable)


def _ranked_by(label: str, run: RunFacts | None) -> str:
    return f"{label}, generation {run.best.number}" if run and run.best else label


def _measured_on(run: RunFacts) -> tuple[Any, ...]:
    data = (run.made.get("identity") or {}).get("dataset")
    return data, *(run.refreshing.get(name) for name in ("dev_split", "dev_depth"))


def _pair(run: RunFacts) -> tuple[Generation, Generation] | None:
    """The first generation and the best one; if those are the same, the first and the last."""
    ranked = [generation for generation in run.generations if generation.dev_run]
    if len(ranked) < 2:
        return None
    best = run.best
    return ranked[0], best if best in ranked[1:] else ranked[-1]


def _dev_data(path: Path, run: RunFacts) -> Dataset:
    """The run's dataset with the labels of its dev split; `Mismatch` if its files have changed."""
    dataset = RunFolder(path).dataset()
    split = run.refreshing["dev_split"]
    return replace(dataset, qrels=labels_of_split(dataset.need("qrels"), split), split=split)


def _compare(
    rankings: Sequence[tuple[str, Path]],
    data: Dataset,
    measures: str,
    cases: int,
    call: Call,
) -> Comparison:
    """The measures and tests of `ance eval` for rankings of the dev queries."""
    labels, paths = zip(*rankings, strict=True)
    found = evaluate_runs(list(paths), data.qrels, measures, dataset=data, cases=cases, call=call)
    return Comparison(list(labels), found["runs"])
