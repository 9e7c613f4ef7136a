"""`ance status`: how a run stands, read from its folder alone.

A pure reader: it takes no lease and writes nothing, and any file may change, vanish or be half-made
while it looks.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput
from ance_cli.formats import atomic
from ance_cli.formats.checkpoint_folder import CheckpointFolder
from ance_cli.formats.embeddings import DONE, load_array
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.lease import look
from ance_cli.formats.ledgers import FOLLOW, SegmentLedger
from ance_cli.formats.retention import disk_use
from ance_cli.formats.run_folder import LOOP, POINTER, REFRESH, RUN, RunFolder, now
from ance_cli.formats.tolerant_io import object_in, records_in
from ance_cli.loop.refresh import NO_DEV
from ance_cli.loop.status_schema import (
    Negatives,
    Problem,
    Refresh,
    Refreshing,
    RunStatus,
    Training,
    Worker,
)

ROLES = ("supervisor", "trainer", "inferencer")

_TAIL_BYTES = 1 << 16
_RECENT_LINES = 20
_MAX_PROBLEMS = 10
_FAILED = re.compile(r"\b(died|failed|refused|diverged)\b")
"""What an event says of something that went wrong."""


def status(path: Path) -> RunStatus:
    """How the run in a folder stands; `BadInput` where there is no run."""
    run = RunFolder(path)
    if not run.exists and not (path / "lease").is_dir():
        raise BadInput(
            f"{path}: {'is not a run folder' if path.exists() else 'no such folder'}: "
            f"there is no {RUN} in it",
            hint="name the folder that ance loop or ance train-segment was given with -o",
        )
    workers = [worker for role in ROLES if (worker := _worker(run, role))]
    alive = {worker.role for worker in workers if worker.alive}
    events = records_in(run.events)
    loop = object_in(path / LOOP)
    published = object_in(path / POINTER)
    segments = SegmentLedger.of_readable(records_in(run.segments))
    log = records_in(run.metrics, _TAIL_BYTES)
    refreshes = _refreshes(run)
    negatives = _negatives(run, log, published, refreshes)
    state = _state(run, alive, events, loop, published, segments)
    left = _refreshes_left(loop, published) * _last_seconds(refreshes)
    return RunStatus(
        run=str(path),
        time=now(),
        state=state,
        mode=loop.get("mode"),
        reason=_told_of_loop(events).get("reason") if loop else None,
        workers=workers,
        training=_training(run, log, loop, segments, negatives, alive, left),
        negatives=negatives,
        refreshing=_refreshing(run, events, alive),
        refreshes=refreshes,
        drift=next((e for e in reversed(events) if e.get("what") == "drift measured"), None),
        problems=_problems(events),
        disk={**disk_use(run), "free": shutil.disk_usage(path).free},
    )


# ---------------------------------------------------------------- who, and what became of it


def _worker(run: RunFolder, role: str) -> Worker | None:
    holder = look(run.lease(role))
    if holder is None:
        return None
    age = round(holder.heartbeat_age, 1)
    return Worker(
        role, holder.alive, holder.host, holder.pid, holder.started, age, holder.command
    )  # fmt: skip


def _state(
    run: RunFolder,
    alive: set[str],
    events: list[dict[str, Any]],
    loop: dict[str, Any],
    published: dict[str, Any],
    segments: SegmentLedger,
) -> str:
    if alive:
        return "running"
    if not run.exists:
        return "unmade"
    if loop:
        done = published.get("checkpoint_step", -1) >= loop.get("last_step", 0)
        done = done or _told_of_loop(events).get("what") == "loop finished"
        return "finished" if done else "stopped"
    if not segments.begun:
        return "prepared"
    return "stopped" if segments.unfinished else "finished"


def _told_of_loop(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The last event about the loop as a whole."""
    told = [event for event in events if str(event.get("what")).startswith("loop ")]
    return told[-1] if told else {}


def _problems(events: list[dict[str, Any]]) -> list[Problem]:
    failed = [event for event in events if _FAILED.search(str(event.get("what")))]
    found = []
    for event in failed[-_MAX_PROBLEMS:]:
        facts = {name: event[name] for name in event if name not in ("time", "who", "what")}
        found.append(Problem(str(event.get("time")), str(event.get("who")), event["what"], facts))
    return found


# ---------------------------------------------------------------- the trainer


def _training(
    run: RunFolder,
    log: list[dict[str, Any]],
    loop: dict[str, Any],
    segments: SegmentLedger,
    negatives: Negatives,
    alive: set[str],
    refresh_seconds: float,
) -> Training:
    last = log[-1] if log else {}
    newest = run.newest_checkpoint()
    step = max(int(last.get("step", 0)), newest[0] if newest else 0)
    begun = segments.begun
    last_step = loop.get("last_step")
    if last_step is None and begun:
        last_step = begun[-1].start_step + begun[-1].steps
    rates = _rates(log)
    left = None
    if rates.get("steps_per_s") and last_step is not None and alive:
        left = round(max(0, last_step - step) / rates["steps_per_s"] + refresh_seconds, 1)
    limit = loop.get("max_staleness") or 0
    follows = bool(begun) and begun[-1].input == FOLLOW
    stale = bool(limit) and negatives.age is not None and negatives.age >= limit
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
        logged_age=_age(run.metrics) if log else None,
        waiting="trainer" in alive and follows and (negatives.published is None or stale),
    )


def _rates(log: list[dict[str, Any]]) -> dict[str, float]:
    """Mean rates over the last lines of the log's last segment, each weighed by its time."""
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


def _refreshes_left(loop: dict[str, Any], published: dict[str, Any]) -> int:
    """Refreshes for which the end of the loop waits: in turn each one, side by side the last."""
    if not {"last_step", "refresh_every"} <= set(loop):
        return 0
    missing = max(0, int(loop["last_step"]) - int(published.get("checkpoint_step", -1)))
    left = -(-missing // int(loop["refresh_every"]))
    return left if loop.get("mode") == "sync" else min(left, 1)


def _last_seconds(refreshes: list[Refresh]) -> float:
    return refreshes[-1].seconds.get("all", 0.0) if refreshes else 0.0


def _age(path: Path) -> float | None:
    try:
        return round(max(0.0, time.time() - path.stat().st_mtime), 1)
    except OSError:
        return None


# ---------------------------------------------------------------- negatives, made and in use


def _negatives(
    run: RunFolder,
    log: list[dict[str, Any]],
    published: dict[str, Any],
    refreshes: list[Refresh],
) -> Negatives:
    switches = records_in(run.switches)
    number = switches[-1].get("generation") if switches else None
    steps = {refresh.generation: refresh.checkpoint_step for refresh in refreshes}
    last = log[-1] if log else {}
    if last and last.get("generation") is None:  # a file of its own, since
        number, mined = None, last.get("negatives_step")
    else:
        mined = steps.get(number) if number is not None else None
    age = None if mined is None else max(0, int(last.get("step", 0)) - mined)
    return Negatives(
        number, mined, age, published.get("generation"), published.get("checkpoint_step")
    )  # fmt: skip


def _refreshing(run: RunFolder, events: list[dict[str, Any]], alive: set[str]) -> Refreshing:
    running = "inferencer" in alive
    number = _partial_generation(run)
    told = [event for event in events if event.get("what") == "refresh started"]
    about = told[-1] if told and (number is None or told[-1].get("generation") == number) else {}
    if number is None:
        if not running:
            phase = "waiting" if _is_between(events, alive) else None
            return Refreshing(phase, False, None, None, None, None, None)
        phase, done, blocks = "start", None, None
        number = about.get("generation")
    else:
        phase, done, blocks = _phase(run.generation(number).partial, object_in(run.path / REFRESH))
    return Refreshing(
        phase, running, number, about.get("checkpoint_step"), done, blocks, about.get("time")
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


def _phase(made: GenerationFolder, settings: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """The stage in which a half-made generation is, and for encoding the blocks done, of all."""
    if not made.embeddings.exists():
        try:
            rows = load_array(atomic.partial_name(made.embeddings) / DONE)["rows"]
            return "encode", int((rows >= 0).sum()), len(rows)
        except (BadInput, OSError, ValueError, IndexError):
            return "encode", None, None  # not begun, or being published
    if settings.get("index_factory") and not made.index.exists():
        return "index", None, None
    for phase, result in (("mine", made.negatives), ("probe", made.probe)):
        if not result.exists():
            return phase, None, None
    return "publish" if settings.get("dev_split") == NO_DEV else "measure", None, None


def _is_between(events: list[dict[str, Any]], alive: set[str]) -> bool:
    """Whether a loop's inferencer waits for its next checkpoint: it holds no lease then."""
    if "supervisor" not in alive:
        return False
    told = [str(event.get("what")) for event in events if event.get("who") == "supervisor"]
    about = [what for what in told if what.startswith(("inferencer ", "loop "))]
    return about[-1:] in (["inferencer started"], ["loop started"])


def _refreshes(run: RunFolder) -> list[Refresh]:
    """The published generations, oldest first."""
    best = object_in(CheckpointFolder(run.best).settings).get("training_step")
    found = []
    for generation in run.all_generations():
        manifest = object_in(generation.manifest)
        stats = manifest.get("stats") or {}
        if "checkpoint_step" not in stats:
            continue
        step = int(stats["checkpoint_step"])
        audit = stats.get("audit") or {}
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
            )
        )
    return found
