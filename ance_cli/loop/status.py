"""`ance status`: the state of a run, read from its folder alone.

It only reads: it takes no lease, and any file may change, vanish or be incomplete meanwhile.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ance_cli.config.loop import GUARD_MARGIN, NO_DEV
from ance_cli.errors import BadInput
from ance_cli.formats import atomic
from ance_cli.formats.checkpoint_folder import CheckpointFolder
from ance_cli.formats.embeddings import DONE, load_array
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.lease import look
from ance_cli.formats.ledgers import SegmentLedger, Switch
from ance_cli.formats.retention import disk_use
from ance_cli.formats.run_folder import (
    LOOP,
    POINTER,
    REFRESH,
    REFRESHER,
    RUN,
    SUPERVISOR,
    TRAINER,
    Pointer,
    RunFolder,
    now,
)
from ance_cli.loop.run_records import (
    AuditRecord,
    Event,
    GenerationManifest,
    LogLine,
    LoopRecord,
    RefreshRecord,
)
from ance_cli.loop.status_schema import (
    NamedCheckpoint,
    Negatives,
    Problem,
    Refresh,
    Refreshing,
    RunStatus,
    Training,
    Worker,
)
from ance_cli.loop.tolerant_io import fitting, object_in, records_in

ROLES = (SUPERVISOR, TRAINER, REFRESHER)

Record = dict[str, Any]

_TAIL_BYTES = 1 << 16
_RECENT_LINES = 20
_MAX_PROBLEMS = 10
_FAILED = re.compile(r"\b(died|failed|refused|diverged)\b")
"""The words of an event that reports a failure."""


@dataclass(frozen=True)
class _Found:
    """What was read from the run folder; a file that is absent or damaged is empty."""

    run: RunFolder
    alive: set[str]
    """The roles whose process lives."""
    events: list[Record]
    loop: Record
    rules: Record
    """The settings of the refreshes."""
    published: Record
    """The pointer to the published generation."""
    log: list[Record]
    """The end of the training log."""
    segments: SegmentLedger
    refreshes: list[Refresh]


def status(path: Path) -> RunStatus:
    """The state of the run in a folder; `BadInput` if there is no run."""
    run = RunFolder(path)
    if not run.exists and not (path / "lease").is_dir():
        raise BadInput(
            f"{path}: {'is not a run folder' if path.exists() else 'no such folder'}: "
            f"there is no {RUN} in it",
            hint="name the folder that ance loop or ance train-segment wrote with -o",
        )
    workers = [worker for role in ROLES if (worker := _worker(run, role))]
    found = _read(run, {worker.role for worker in workers if worker.alive})
    negatives = _negatives(found)
    events = found.events
    guard = found.rules.get("guard")
    return RunStatus(
        run=str(path),
        time=now(),
        state=_state(found),
        mode=found.loop.get("mode"),
        reason=_last_loop_event(events).get("reason") if found.loop else None,
        workers=workers,
        training=_training(found, negatives),
        negatives=negatives,
        refreshing=_refreshing(found),
        refreshes=found.refreshes,
        guard=guard,
        guard_margin=found.rules.get("guard_margin", GUARD_MARGIN) if guard else None,
        latest=_named(run.latest, found.refreshes),
        best=_named(run.best, found.refreshes),
        drift=next((e for e in reversed(events) if e.get("what") == "drift measured"), None),
        problems=_problems(events),
        disk={**disk_use(run), "free": shutil.disk_usage(path).free},
    )


def _read(run: RunFolder, alive: set[str]) -> _Found:
    return _Found(
        run=run,
        alive=alive,
        events=records_in(run.events, Event),
        loop=object_in(run.path / LOOP, LoopRecord),
        rules=object_in(run.path / REFRESH, RefreshRecord),
        published=object_in(run.path / POINTER, Pointer),
        log=records_in(run.metrics, LogLine, last_bytes=_TAIL_BYTES),
        segments=SegmentLedger.of_readable(records_in(run.segments)),
        refreshes=_refreshes(run),
    )


# ---------------------------------------------------------------- processes and events


def _worker(run: RunFolder, role: str) -> Worker | None:
    holder = look(run.lease(role))
    if holder is None:
        return None
    age = round(holder.heartbeat_age, 1)
    return Worker(
        role, holder.alive, holder.host, holder.pid, holder.started, age, holder.command
    )  # fmt: skip


def _state(found: _Found) -> str:
    if found.alive:
        return "running"
    if not found.run.exists:
        return "unmade"
    if found.loop:
        done = found.published.get("checkpoint_step", -1) >= found.loop.get("last_step", 0)
        done = done or _last_loop_event(found.events).get("what") == "loop finished"
        return "finished" if done else "stopped"
    if not found.segments.begun:
        return "prepared"
    return "stopped" if found.segments.unfinished else "finished"


def _last_loop_event(events: list[Record]) -> Record:
    """The last event about the loop as a whole."""
    about = [event for event in events if str(event.get("what")).startswith("loop ")]
    return about[-1] if about else {}


def _problems(events: list[Record]) -> list[Problem]:
    failed = [event for event in events if _FAILED.search(str(event.get("what")))]
    problems = []
    for event in failed[-_MAX_PROBLEMS:]:
        facts = {name: event[name] for name in event if name not in ("time", "who", "what")}
        who = str(event.get("who"))
        problems.append(Problem(str(event.get("time")), who, event["what"], facts))
    return problems


# ---------------------------------------------------------------- the trainer


def _training(found: _Found, negatives: Negatives) -> Training:
    log, loop, begun = found.log, found.loop, found.segments.begun
    last = log[-1] if log else {}
    newest = found.run.newest_checkpoint()
    step = max(int(last.get("step", 0)), newest[0] if newest else 0)
    last_step = loop.get("last_step")
    if last_step is None and begun:
        last_step = begun[-1].end_step
    rates = _rates(log)
    left = None
    if rates.get("steps_per_s") and last_step is not None and found.alive:
        seconds = max(0, last_step - step) / rates["steps_per_s"]
        left = round(seconds + _refresh_seconds_left(found), 1)
    return Training(
        step=step,
        last_step=last_step,
        epoch=last.get("epoch"),
        loss=last.get("loss"),
        lr=last.get("lr"),
        steps_per_s=rates.get("steps_per_s"),
        tokens_per_s=rates.get("tokens_per_s"),
        mfu=rates.get("mfu"),
        seconds_left=left,
        logged_age=_age(found.run.metrics) if log else None,
        waiting=_is_waiting(found, negatives),
    )


def _is_waiting(found: _Found, negatives: Negatives) -> bool:
    """Whether a trainer that follows the generations waits for the first or for a newer one."""
    begun = found.segments.begun
    if TRAINER not in found.alive or not begun or not begun[-1].follows:
        return False
    limit = found.loop.get("max_staleness") or 0
    is_stale = bool(limit) and negatives.age is not None and negatives.age >= limit
    return negatives.published is None or is_stale


def _rates(log: list[Record]) -> dict[str, float]:
    """Mean rates over the last lines of the log's last segment, each weighted by its time."""
    recent = [line for line in log if line.get("segment") == log[-1].get("segment")]
    recent = [line for line in recent[-_RECENT_LINES:] if line.get("steps_per_s")]
    timed = [
        ((after["step"] - before["step"]) / after["steps_per_s"], after)
        for before, after in pairwise(recent)
    ]
    timed = timed or [(1.0, line) for line in recent]
    total = sum(seconds for seconds, _ in timed)
    return {
        name: round(sum(seconds * line[name] for seconds, line in timed) / total, 4)
        for name in ("steps_per_s", "tokens_per_s", "mfu")
        if total and all(name in line for _, line in timed)
    }


def _refresh_seconds_left(found: _Found) -> float:
    """Seconds of the refreshes that the end of the loop waits for."""
    last = found.refreshes[-1].seconds.get("all", 0.0) if found.refreshes else 0.0
    return _refreshes_left(found.loop, found.published) * last


def _refreshes_left(loop: Record, published: Record) -> int:
    """The refreshes that the end of the loop waits for: all that are left in a synchronous loop,
    the last one in an asynchronous loop."""
    if not {"last_step", "refresh_every"} <= set(loop):
        return 0
    missing = max(0, int(loop["last_step"]) - int(published.get("checkpoint_step", -1)))
    left = -(-missing // int(loop["refresh_every"]))
    return left if loop.get("mode") == "sync" else min(left, 1)


def _age(path: Path) -> float | None:
    try:
        return round(max(0.0, time.time() - path.stat().st_mtime), 1)
    except OSError:
        return None


# ---------------------------------------------------------------- negatives, made and in use


def _negatives(found: _Found) -> Negatives:
    switches = records_in(found.run.switches, Switch)
    number = switches[-1].get("generation") if switches else None
    steps = {refresh.generation: refresh.checkpoint_step for refresh in found.refreshes}
    last = found.log[-1] if found.log else {}
    if last and last.get("generation") is None:  # since then, trained on a file
        number, mined = None, last.get("negatives_step")
    else:
        mined = steps.get(number) if number is not None else None
    age = None if mined is None else max(0, int(last.get("step", 0)) - mined)
    published = found.published
    return Negatives(
        number, mined, age, published.get("generation"), published.get("checkpoint_step")
    )  # fmt: skip


def _refreshing(found: _Found) -> Refreshing:
    run, is_running = found.run, REFRESHER in found.alive
    number = _partial_generation(run)
    started = [event for event in found.events if event.get("what") == "refresh started"]
    is_this = bool(started) and (number is None or started[-1].get("generation") == number)
    about = started[-1] if is_this else {}
    if number is None:
        if not is_running:
            phase = "waiting" if _is_between(found.events, found.alive) else None
            return Refreshing(phase, False, None, None, None, None, None)
        phase, done, blocks = "start", None, None
        number = about.get("generation")
    else:
        phase, done, blocks = _phase(run.generation(number).partial, found.rules)
    return Refreshing(
        phase, is_running, number, about.get("checkpoint_step"), done, blocks, about.get("time")
    )  # fmt: skip


def _partial_generation(run: RunFolder) -> int | None:
    try:
        names = os.listdir(run.generations)
    except OSError:
        return None
    numbers = [
        int(found[1]) for name in names if (found := re.fullmatch(r"\.(\d+)\.partial", name))
    ]
    return max(numbers, default=None)


def _phase(made: GenerationFolder, settings: Record) -> tuple[str, int | None, int | None]:
    """The stage that an unfinished generation is in; for encoding also the blocks that are done and
    their number."""
    if not made.embeddings.exists():
        try:
            rows = load_array(atomic.partial_name(made.embeddings) / DONE)["rows"]
            return "encode", int((rows >= 0).sum()), len(rows)
        except (BadInput, OSError, ValueError, IndexError):
            return "encode", None, None  # not begun yet, or just published
    if settings.get("index_factory") and not made.index.exists():
        return "index", None, None
    for phase, result in (("mine", made.negatives), ("probe", made.probe)):
        if not result.exists():
            return phase, None, None
    if settings.get("dev_split") != NO_DEV and not (settings.get("guard") and made.dev.exists()):
        return "measure", None, None
    return "guard" if settings.get("guard") else "publish", None, None


def _is_between(events: list[Record], alive: set[str]) -> bool:
    """Whether a loop's refresh daemon waits for a checkpoint; it holds no lease then."""
    if SUPERVISOR not in alive:
        return False
    said = [str(event.get("what")) for event in events if event.get("who") == SUPERVISOR]
    about = [what for what in said if what.startswith((f"{REFRESHER} ", "loop "))]
    return about[-1:] in ([f"{REFRESHER} started"], ["loop started"])


def _refreshes(run: RunFolder) -> list[Refresh]:
    """The published generations, oldest first."""
    best = object_in(CheckpointFolder(run.best).settings).get("training_step")
    found = []
    for generation in run.all_generations():
        manifest = object_in(generation.manifest, GenerationManifest)
        stats = manifest.get("stats") or {}
        if "checkpoint_step" not in stats:
            continue
        step = int(stats["checkpoint_step"])
        audit = fitting(stats.get("audit"), AuditRecord | None, str(generation.manifest))
        removed = audit.get("removed_from_candidates") or {}
        found.append(
            Refresh(
                generation=generation.number,
                checkpoint_step=step,
                published=manifest.get("created"),
                is_best=step == best,
                age=stats.get("age"),
                seconds=stats.get("seconds") or {},
                probe_overlap=stats.get("probe_overlap"),
                overlap_with_earlier=audit.get("overlap_with_earlier"),
                churn_against_earlier=audit.get("churn_against_earlier"),
                pairs=audit.get("pairs"),
                negatives=audit.get("negatives"),
                positives_filtered=sum(rules.get("positives", 0) for rules in removed.values())
                if audit
                else None,
                pairs_short_of_negatives=audit.get("pairs_short_of_negatives"),
                negatives_missing=audit.get("negatives_missing"),
                consumed=stats.get("consumed"),
                dev=stats.get("dev") or {},
                guard=stats.get("guard") or {},
                guard_fall=stats.get("guard_fall"),
            )
        )
    return found


def _named(path: Path, refreshes: list[Refresh]) -> NamedCheckpoint | None:
    """The checkpoint that a link in the run folder points to, with its generation's measures."""
    step = object_in(CheckpointFolder(path).settings).get("training_step")
    if not isinstance(step, int):
        return None
    dev = [refresh.dev for refresh in refreshes if refresh.checkpoint_step == step]
    return NamedCheckpoint(str(path), step, dev[-1] if dev else {})
