"""The facts of a report: plain values, gathered by `report.report` and shown by `page`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ance_cli.formats.ledgers import FOLLOW
from ance_cli.loop.status_schema import Refresh, RunStatus

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Mean:
    """A measure's mean over the judged queries, and its 95 % interval if it was kept."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Generation:
    """What one refresh made, and from what; fingerprints are from the manifests."""

    refresh: Refresh
    dev: dict[str, Mean]
    guard: dict[str, Mean]
    audit: Record
    query_tower: str | None
    passage_tower: str | None
    embeddings: str | None
    """The embeddings that the negatives were mined with, even if they were removed since."""
    negatives: str | None
    dev_run: Path | None
    """The ranking of the dev queries, if it still exists."""
    num_bytes: int
    """Size of its files when it was published."""

    @property
    def number(self) -> int:
        return self.refresh.generation

    @property
    def step(self) -> int:
        return self.refresh.checkpoint_step


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps that were trained on the same negatives: after `first`, up to `last`."""

    first: int
    last: int
    source: str
    """`generation 3`, the path of a file, or what was used instead of a file."""
    generation: int | None
    mined_at: int | None
    """Step of the checkpoint that mined them; None if no checkpoint did."""

    @property
    def ages(self) -> tuple[int, int] | None:
        """Age of the negatives in steps, at the beginning and at the end of the stretch."""
        if self.mined_at is None or self.generation is None:
            return None
        return self.first - self.mined_at, self.last - self.mined_at


@dataclass(frozen=True)
class RunFacts:
    """What the folder of one run contains."""

    label: str
    """Its name in tables and legends."""
    status: RunStatus
    made: Record
    """`run.json`; `refreshing` is `refresh.json`, and `looping` is `loop.json`."""
    refreshing: Record
    looping: Record
    log: list[dict[str, Any]]
    stretches: list[Stretch]
    drifts: list[dict[str, Any]]
    """The events that measured drift."""
    generations: list[Generation]
    damage: list[str]
    """The files that exist and could not be read, and why."""

    @property
    def best(self) -> Generation | None:
        """The generation whose checkpoint `best` points to; without it, the best by the first
        measure."""
        measured = [generation for generation in self.generations if generation.dev]
        for generation in measured:
            if generation.refresh.is_best:
                return generation
        return max(measured, key=lambda g: next(iter(g.dev.values())).mean, default=None)


@dataclass(frozen=True)
class Baseline:
    """What the run is compared with: another run, or a ranking of the dev queries."""

    label: str
    run: RunFacts | None
    ranking: Path | None
    """The ranking by the other run's best generation, or the file itself."""
    comparable: bool = True
    """Whether both were measured on the same data, split and depth, as far as their files say."""


@dataclass(frozen=True)
class Comparison:
    """The summary (`runs`) of `ance eval` on two or more rankings; the others are tested against
    the first."""

    labels: list[str]
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class ReportFacts:
    """Everything that a page shows."""

    run: RunFacts
    baselines: list[Baseline] = field(default_factory=list)
    against: Comparison | None = None
    """The baselines, tested against the run's best generation."""
    cases: Comparison | None = None
    """Two generations of the run, the later one with its cases."""
    missing: list[str] = field(default_factory=list)
    """What the page cannot show, and why."""


def means_of_files(facts: ReportFacts, measure: str) -> dict[str, float]:
    """Label -> mean of the baselines that are rankings, not runs."""
    if facts.against is None:
        return {}
    single = {each.label for each in facts.baselines if each.run is None}
    return {
        label: row["measures"][measure]["mean"]
        for label, row in zip(facts.against.labels, facts.against.runs, strict=True)
        if label in single and measure in row["measures"]
    }


def stretches_of(
    segments: Iterable[Record],
    switches: Iterable[Record],
    mined_at: Mapping[int, int],
    last_step: int,
) -> list[Stretch]:
    """The negatives of each training step, from `segments.jsonl` and `switches.jsonl`.

    `mined_at` maps each generation to its checkpoint step; `last_step` is the last trained step.
    """
    switched = sorted((int(each["step"]), int(each["generation"])) for each in switches)
    begun: dict[int, tuple[str, int | None, int | None]] = {}
    for segment in segments:
        if not {"segment", "start_step"} <= segment.keys():
            continue
        start, generation = int(segment["start_step"]), segment.get("generation")
        if segment.get("input") == FOLLOW:  # it starts with the generation in use
            generation = next(
                (number for step, number in reversed(switched) if step <= start), None
            )
            if generation is None:
                continue
        if generation is not None:
            begun[start] = _of_generation(generation, mined_at)
        else:
            source = segment.get("negatives") or segment.get("input")
            begun[start] = str(source), None, segment.get("checkpoint_step")
    begun |= {step: _of_generation(number, mined_at) for step, number in switched}
    return [
        Stretch(start, end, *begun[start])
        for start, end in pairwise([*sorted(begun), last_step])
        if end > start
    ]


def _of_generation(number: int, mined_at: Mapping[int, int]) -> tuple[str, int | None, int | None]:
    return f"generation {number}", number, mined_at.get(number)
