"""Watches the run's published generations while training: each new one is read in the background,
and every rank takes it at the same step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ance_cli.errors import BadInput, ResourceExhausted
from ance_cli.formats.ledgers import Switch, read_ledger_as
from ance_cli.formats.run_folder import POINTER, RunFolder
from ance_cli.progress import Reporter
from ance_cli.training.data import NegativesSnapshot
from ance_cli.training.segments import SegmentInput, segment_input

if TYPE_CHECKING:
    from ance_cli.training.distributed import World

_POLL_SECONDS = 0.5
"""Between two looks for the first generation."""


class GenerationWatcher:
    """Reads each newly published generation in the background.

    `published()` returns the number of the newest generation. `load(number)` reads a generation; if
    it raises, `failed(number, error)` is called and the generation is skipped. A resumed run first
    replays `switches` (step -> generation) up to `replay_until`, to repeat the steps of the
    interrupted run; only then it takes a newer generation.
    """

    def __init__(
        self,
        published: Callable[[], int],
        load: Callable[[int], NegativesSnapshot],
        failed: Callable[[int, Exception], None],
        switches: Mapping[int, int],
        replay_until: int,
    ) -> None:
        self._published, self._load, self._failed = published, load, failed
        self._switches, self._replay_until = switches, replay_until
        self._loaded: dict[int, NegativesSnapshot] = {}
        self._asked = 0
        self._thread: threading.Thread | None = None

    def is_replaying(self, step: int) -> bool:
        """Whether the batch of `step` was trained before the run was interrupted."""
        return step < self._replay_until

    def ready(self, step: int) -> int:
        """The newest generation that can be taken for the batch of `step`; 0 = none is new."""
        if self.is_replaying(step):
            return self._switches.get(step, 0)
        newest = self._published()
        busy = self._thread is not None and self._thread.is_alive()
        if newest > self._asked and not busy:
            self._asked = newest
            self._thread = threading.Thread(target=self._read, args=(newest,), daemon=True)
            self._thread.start()
        return max(self._loaded, default=0)

    def has(self, number: int, step: int) -> bool:
        """Whether a generation can be taken for the batch of `step`: it was read, or is replayed.

        One rank's newest generation may be one that another rank skipped or has not seen yet.
        """
        return number in self._loaded or self.is_replaying(step)

    def take(self, number: int) -> NegativesSnapshot:
        """The generation, read now if it was not read before; drops the ones before it."""
        snapshot = self._loaded.get(number) or self._load(number)
        for old in [n for n in list(self._loaded) if n <= number]:  # the thread may add one now
            del self._loaded[old]
        self._asked = max(self._asked, number)
        return snapshot

    def _read(self, number: int) -> None:
        try:
            self._loaded[number] = self._load(number)
        except Exception as error:  # a damaged generation must not end the training
            with suppress(ResourceExhausted):  # nor must a disk that is too full to log it
                self._failed(number, error)


def watch_generations(
    run: RunFolder,
    step: int,
    logged: int,
    load_snapshot: Callable[[SegmentInput], NegativesSnapshot],
    world: World,
    reporter: Reporter,
) -> tuple[GenerationWatcher, NegativesSnapshot]:
    """The watcher of a run at `step`, and the negatives of its next batch.

    `logged` is the last step in the log of an interrupted call. The switches in the ledger are
    replayed up to that step, and up to the last switch, which is logged before its batch. Waits for
    the first generation if there is none yet.
    """
    switches = {each.step: each.generation for each in read_ledger_as(run.switches, Switch)}
    replay_until = max([logged, *(at + 1 for at in switches if at > step)])
    in_use = [switches[at] for at in sorted(switches) if at <= step]
    published = _Pointer(run)

    def load(number: int) -> NegativesSnapshot:
        return load_snapshot(segment_input(run, _negatives_of(run, number)))

    def failed(number: int, error: Exception) -> None:
        if world.is_main:
            reporter.warn(f"generation {number} cannot be read and is skipped: {error}")
            run.event("trainer", "generation refused", generation=number, reason=str(error))

    watcher = GenerationWatcher(published, load, failed, switches, replay_until)
    if in_use:
        number = in_use[-1]
    else:
        if not published() and world.is_main:
            reporter.say("waiting for the first negatives, which ance refresh makes")
            run.event("trainer", "waiting for the first negatives")
        while not (number := world.all_reduce_min(published())):
            time.sleep(_POLL_SECONDS)
    return watcher, watcher.take(number)


def _negatives_of(run: RunFolder, generation: int) -> Path:
    path = run.generation(generation).negatives
    if not path.exists():
        raise BadInput(
            f"{path}: no such file, but the run has trained on it (switches.jsonl)",
            hint="restore the folder of the generation",
        )
    return path


class _Pointer:
    """The number of the published generation; reads the pointer only if its file has changed."""

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
