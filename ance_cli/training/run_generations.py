"""Training that follows a run's published generations: which one it begins with, what an
interrupted call saw, and what comes next."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ance_cli.errors import BadInput
from ance_cli.formats.ledgers import Switch, read_ledger_as
from ance_cli.formats.run_folder import POINTER, RunFolder
from ance_cli.progress import Reporter
from ance_cli.training.segments import SegmentInput, segment_input

if TYPE_CHECKING:
    from ance_cli.training.distributed import World
    from ance_cli.training.generation_watcher import GenerationWatcher, NegativesSnapshot

_POLL_SECONDS = 0.5


def watch_generations(
    run: RunFolder,
    step: int,
    logged: int,
    load_snapshot: Callable[[SegmentInput], NegativesSnapshot],
    world: World,
    reporter: Reporter,
) -> tuple[GenerationWatcher, NegativesSnapshot]:
    """The follower of a run that stands at `step`, and the negatives of its next batch.

    `logged` is the last step that an interrupted call logged: up to there the ledger's switches
    are repeated, and up to the last switch, which is noted before its batch. Waits for the first
    generation where nothing was mined yet.
    """
    from ance_cli.training.generation_watcher import GenerationWatcher

    switches = {each.step: each.generation for each in read_ledger_as(run.switches, Switch)}
    replay_until = max([logged, *(at + 1 for at in switches if at > step)])
    in_use = [switches[at] for at in sorted(switches) if at <= step]
    published = _Pointer(run)

    def load(number: int) -> NegativesSnapshot:
        return load_snapshot(segment_input(run, _negatives_of(run, number)))

    def failed(number: int, error: Exception) -> None:
        if world.is_main:
            reporter.warn(f"generation {number} cannot be read, training goes on: {error}")
            run.event("trainer", "generation refused", generation=number, reason=str(error))

    watcher = GenerationWatcher(published, load, failed, switches, replay_until)
    if in_use:
        number = in_use[-1]
    else:
        if not published() and world.is_main:
            reporter.say("waiting for the first negatives: ance refresh makes them")
            run.event("trainer", "waiting for the first negatives")
        while not (number := world.all_reduce_min(published())):
            time.sleep(_POLL_SECONDS)
    return watcher, watcher.take(number)


def _negatives_of(run: RunFolder, generation: int) -> Path:
    path = run.generation(generation).negatives
    if not path.exists():
        raise BadInput(
            f"{path}: no such file, and the run's ledger says that it trained on it",
            hint="bring the generation's folder back",
        )
    return path


class _Pointer:
    """The number of the published generation, read again only when the pointer's file changed."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._path = run.path / POINTER
        self._seen: tuple[int, int] | None = None
        self._number = 0

    def __call__(self) -> int:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return 0
        if (seen := (stat.st_mtime_ns, stat.st_ino)) != self._seen:
            found = self._run.published()
            self._seen, self._number = seen, found.generation if found else 0
        return self._number
