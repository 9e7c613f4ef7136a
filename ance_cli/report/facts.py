"""What a report tells of a run: plain values, gathered by `report.report`, shown by `page`."""

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
    """A measure's mean over the judged queries and its 95 % interval, if that was kept."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Generation:
    """What one refresh made, and of what. Fingerprints are those of the manifests."""

    refresh: Refresh
    dev: dict[str, Mean]
    audit: Record
    query_tower: str | None
    passage_tower: str | None
    embeddings: str | None
    """What the negatives were mined with, also where it was removed since."""
    negatives: str | None
    dev_run: Path | None
    """The ranking of the dev queries, where it is still there."""
    num_bytes: int
    """Of its files, when it was published."""

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
    """`generation 3`, the path of a file, or what took a file's place."""
    generation: int | None
    mined_at: int | None
    """Step of the checkpoint that mined them; None where none did."""

    @property
    def ages(self) -> tuple[int, int] | None:
        """Age of the negatives in steps, at the beginning and at the end."""
        if self.mined_at is None or self.generation is None:
            return None
        return self.first - self.mined_at, self.last - self.mined_at


@dataclass(frozen=True)
class RunFacts:
    """One run, as its folder tells of it."""

    label: str
    """What it is called in tables and legends."""
    status: RunStatus
    made: Record
    """`run.json`; so `refreshing` and `looping` are `refresh.json` and `loop.json`."""
    refreshing: Record
    looping: Record
    log: list[dict[str, Any]]
    stretches: list[Stretch]
    drifts: list[dict[str, Any]]
    """The events of measured drift."""
    generations: list[Generation]
    damage: list[str]
    """What lies in the folder and could not be read."""

    @property
    def best(self) -> Generation | None:
        """The generation whose checkpoint `best` names, else the best by the first measure."""
        measured = [generation for generation in self.generations if generation.dev]
        for generation in measured:
            if generation.refresh.is_best:
                return generation
        return max(measured, key=lambda g: next(iter(g.dev.values())).mean, default=None)


@dataclass(frozen=True)
class Baseline:
    """What the run is measured against: another run, or a ranking of the dev queries."""

    label: str
    run: RunFacts | None
    ranking: Path | None
    """That of the other run's best generation, or the file itself."""
    comparable: bool = True
    """Whether both were measured on the same data, split and depth, as far as is known."""


@dataclass(frozen=True)
class Comparison:
    """What `ance eval` says of two or more rankings (`runs` of its summary), the first of which is
    what the others are tested against."""

    labels: list[str]
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class ReportFacts:
    """All that a page shows."""

    run: RunFacts
    baselines: list[Baseline] = field(default_factory=list)
    against: Comparison | None = None
    """The baselines against the run's best generation."""
    cases: Comparison | None = None
    """Two generations of the run, the later one with its cases."""
    missing: list[str] = field(default_factory=list)
    """What the page cannot show, and why."""


def stretches_of(
    segments: Iterable[Record],
    switches: Iterable[Record],
    mined_at: Mapping[int, int],
    last_step: int,
) -> list[Stretch]:
    """What was trained on when, from `segments.jsonl` and `switches.jsonl`.

    `mined_at` gives the checkpoint step of each generation, `last_step` is the last one trained.
    """
    switched = sorted((int(each["step"]), int(each["generation"])) for each in switches)
    begun: dict[int, tuple[str, int | None, int | None]] = {}
    for segment in segments:
        if "segment" not in segment:
            continue
        start, generation = int(segment["start_step"]), segment.get("generation")
        if segment.get("input") == FOLLOW:  # on, with the generation it had, until it switches
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
