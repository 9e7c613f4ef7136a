"""The fields of a run's files that commands show, with their types.

`tolerant_io` takes a record whose field has another type for damaged. Fields that are not listed
here have any type.
"""

from __future__ import annotations

from typing import Annotated, Any, Required, TypedDict

from msgspec import Meta


class LogLine(TypedDict, total=False):
    """A line of `metrics.jsonl`."""

    step: Required[int]
    epoch: int
    loss: float
    lr: float
    steps_per_s: float
    tokens_per_s: float
    mfu: float
    segment: int
    generation: int | None
    negatives_step: int | None
    negatives_age: int


class Event(TypedDict, total=False):
    """A line of `events.jsonl`."""

    time: str
    who: str
    what: str
    generation: int | None
    checkpoint_step: int | None
    overlap: float | None
    reason: str | None


class SegmentLine(TypedDict, total=False):
    """A line of `segments.jsonl`: a segment that began, or the number of one that ended."""

    segment: int
    finished: int
    start_step: int
    generation: int | None
    checkpoint_step: int | None


class LoopRecord(TypedDict, total=False):
    """`loop.json`."""

    mode: str
    last_step: int
    refresh_every: Annotated[int, Meta(ge=1)]
    max_staleness: int | None


class RefreshRecord(TypedDict, total=False):
    """`refresh.json`."""

    measures: str
    dev_split: str
    dev_depth: int
    index_factory: str | None
    guard: str | None
    guard_margin: float


class RunRecord(TypedDict, total=False):
    """`run.json`."""

    identity: dict[str, Any]
    data: dict[str, Any] | None


class Quantiles(TypedDict):
    """Scores of negatives or positives in an audit."""

    p5: float
    p50: float
    p95: float


class AuditRecord(TypedDict, total=False):
    """The audit of a generation's negatives, in the manifest's `stats`."""

    pairs: int
    negatives: int
    removed_from_candidates: dict[str, dict[str, int]]
    overlap_with_earlier: float | None
    churn_against_earlier: float | None
    pairs_short_of_negatives: int
    negatives_missing: int
    positive_scores: Quantiles | None
    negative_scores: Quantiles | None


class GenerationStats(TypedDict, total=False):
    """The figures in a generation's manifest."""

    checkpoint_step: Required[int]
    age: int | None
    seconds: dict[str, float]
    probe_overlap: float | None
    consumed: float | None
    dev: dict[str, float]
    guard: dict[str, float]
    guard_fall: float | None


class _Files(TypedDict, total=False):
    files: dict[str, int]
    files_xxh3: dict[str, str]


class GenerationManifest(TypedDict, total=False):
    """The manifest of a generation."""

    created: str
    inputs: dict[str, str]
    content: _Files
    stats: GenerationStats


class NegativesManifest(TypedDict, total=False):
    """The manifest of a generation's negatives."""

    fingerprint: str
    inputs: dict[str, str]


class MeasureRecord(TypedDict):
    """A measure in `dev.json` or `guard.json`."""

    mean: float
    low: float
    high: float
