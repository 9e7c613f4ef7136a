"""The state of a run: the fields of `ance status --json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ance_cli.formats.run_folder import REFRESHER


def shown_role(role: str) -> str:
    """A role as people read it."""
    return "refresh" if role == REFRESHER else role


def shown_event(what: str) -> str:
    """What an event of the supervisor says, as people read it."""
    return what.replace(REFRESHER, "refresh daemon")


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
    """The progress of training. `loss` and `lr` are from the last line of the log, the rates are
    means over its last lines."""

    step: int
    last_step: int | None
    """At which the loop, or the last segment that was begun, ends."""
    epoch: int | None
    loss: float | None
    lr: float | None
    steps_per_s: float | None
    tokens_per_s: float | None
    mfu: float | None
    seconds_left: float | None
    """Until the loop, or the segment, ends; None if no process works on the run."""
    logged_age: float | None
    """Seconds since the last line of the log."""
    waiting: bool
    """For the first negatives, or for newer ones (`--max-staleness`)."""


@dataclass(frozen=True)
class Negatives:
    """The generation in use by the trainer, and the published one; `age` is in steps."""

    generation: int | None
    checkpoint_step: int | None
    age: int | None
    published: int | None
    published_step: int | None


@dataclass(frozen=True)
class Refreshing:
    """The current refresh: the `phase` that the making of `generation` is in, or `waiting` for a
    checkpoint; None if no process refreshes. If not `running`, the refresh was interrupted."""

    phase: str | None
    running: bool
    generation: int | None
    checkpoint_step: int | None
    blocks_done: int | None
    blocks: int | None
    """Blocks of the corpus to encode."""
    started: str | None


@dataclass(frozen=True)
class Refresh:
    """A published generation, from its manifest."""

    generation: int
    checkpoint_step: int
    published: str | None
    is_best: bool
    age: int | None
    """Steps from its checkpoint to the trainer's step when it was published."""
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
    """Pairs trained on the generation before it, as a multiple of all pairs."""
    dev: dict[str, float]
    guard: dict[str, float]
    """The same measures on the guard; empty if the run has none."""
    guard_fall: float | None
    """How far the first of them is below that of the run's start."""


@dataclass(frozen=True)
class NamedCheckpoint:
    """What `latest` or `best` in the run folder points to; `dev` is empty if it is not measured."""

    path: str
    step: int
    dev: dict[str, float]


@dataclass(frozen=True)
class Problem:
    """An event that reports a failure."""

    time: str
    who: str
    what: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """What `ance status` shows. `state` is `running` (a process works on the run), `finished`,
    `stopped` (repeating the command continues the run), `prepared` (nothing was trained yet) or
    `unmade` (there is no `run.json`)."""

    run: str
    time: str
    state: str
    mode: str | None
    """`sync` or `async`; None if the run is not a loop's."""
    reason: str | None
    """Why the loop stopped before its last step."""
    workers: list[Worker]
    training: Training
    negatives: Negatives
    refreshing: Refreshing
    refreshes: list[Refresh]
    guard: str | None
    """The collection on which each generation is measured too."""
    guard_margin: float | None
    latest: NamedCheckpoint | None
    best: NamedCheckpoint | None
    drift: dict[str, Any] | None
    """The last event that measured drift."""
    problems: list[Problem]
    """The last problems, oldest first."""
    disk: dict[str, int]
    """Bytes of each part, of `all` parts together, and `free` on the file system."""


def explained(found: RunStatus) -> dict[str, str]:
    """What `latest` and `best` of a run are, and which one to deploy, in a sentence each; empty
    before the first checkpoint."""
    latest, best = found.latest, found.best
    if latest is None:
        return {}
    newest = f"{latest.path}, step {latest.step:,}: the newest weights, where training continues"
    if best is None or not best.dev:
        return {"latest": f"{newest}; deploy it, because no generation is measured on dev"}
    measure, value = next(iter(best.dev.items()))
    among = f" within --guard-margin {found.guard_margin:g}" if found.guard else ""
    of_latest = latest.dev.get(measure)
    if best.step == latest.step:
        compared = "latest is the same checkpoint"
    elif of_latest is None:
        compared = "latest is not measured"
    elif value == of_latest:
        compared = "latest is equally good"
    elif value > of_latest:
        compared = f"{value - of_latest:.4f} above latest"
    else:
        compared = f"{of_latest - value:.4f} below latest"
        compared += ", which has fallen too far on the guard" if found.guard else ""
    return {
        "latest": newest,
        "best": f"{best.path}, step {best.step:,}: deploy this one; its {measure} on dev is the "
        f"highest{among}, {value:.4f}; {compared}",
    }
