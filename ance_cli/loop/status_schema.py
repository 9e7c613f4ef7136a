"""How a run stands: what `ance status` gathers, and the fields of its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Worker:
    """A process that holds, or held, one of the run's leases."""

    role: str
    alive: bool
    host: str
    pid: int
    started: str
    heartbeat_age: float
    """Seconds."""
    command: str


@dataclass(frozen=True)
class Training:
    """Where the trainer stands. `loss` and `lr` are of the last line of the log, the rates are the
    mean over its last lines."""

    step: int
    last_step: int | None
    """Of the loop, or of the last segment that was begun."""
    epoch: int | None
    loss: float | None
    lr: float | None
    steps_per_s: float | None
    tokens_per_s: float | None
    mfu: float | None
    seconds_left: float | None
    """Until the loop, or the segment, ends; only while somebody works on it."""
    logged_age: float | None
    """Seconds since the last line of the log."""
    waiting: bool
    """For the first negatives, or for fresher ones (`--max-staleness`)."""


@dataclass(frozen=True)
class Negatives:
    """The generation that is trained on and the one that is published; ages in steps."""

    generation: int | None
    checkpoint_step: int | None
    age: int | None
    published: int | None
    published_step: int | None


@dataclass(frozen=True)
class Refreshing:
    """What the inferencer does: the `phase` of a `generation` that it makes, or `waiting` for a
    checkpoint; None where there is no inferencer. Not `running`: left unfinished."""

    phase: str | None
    running: bool
    generation: int | None
    checkpoint_step: int | None
    blocks_done: int | None
    blocks: int | None
    """Of the corpus's encoding."""
    started: str | None


@dataclass(frozen=True)
class Refresh:
    """A generation, as its manifest tells of it."""

    generation: int
    checkpoint_step: int
    published: str | None
    is_best: bool
    age: int | None
    """Steps that the trainer was ahead of the checkpoint when it was published."""
    seconds: dict[str, float]
    probe_overlap: float | None
    overlap_with_earlier: float | None
    churn_against_earlier: float | None
    pairs: int | None
    negatives: int | None
    positives_filtered: int | None
    pairs_short_of_negatives: int | None
    negatives_missing: int | None
    consumed: float | None
    """Share of the earlier generation's pairs that was trained on."""
    dev: dict[str, float]


@dataclass(frozen=True)
class Problem:
    """An event that tells of a failure."""

    time: str
    who: str
    what: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """All that `ance status` shows. `state` is `running` (somebody is at work), `finished`,
    `stopped` (the same command continues it), `prepared` (nothing was trained yet) or `unmade`
    (without `run.json`)."""

    run: str
    time: str
    state: str
    mode: str | None
    """Of the loop: `sync` or `async`."""
    reason: str | None
    """Why the loop ended before its last step."""
    workers: list[Worker]
    training: Training
    negatives: Negatives
    refreshing: Refreshing
    refreshes: list[Refresh]
    drift: dict[str, Any] | None
    """The event of the last measured drift."""
    problems: list[Problem]
    """The last ones, oldest first."""
    disk: dict[str, int]
    """Bytes by part, of `all` parts, and `free` on the file system."""
