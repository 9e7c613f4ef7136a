"""Following the run's published negatives while training: a new generation is read in the
background, and every rank takes it at the same step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ance_cli.errors import ResourceExhausted
from ance_cli.models.tokens import TokenRows
from ance_cli.training.data import PairStream


@dataclass(frozen=True)
class NegativesSnapshot:
    """Negatives ready for training: their stream, and the token rows of its documents.

    `generation` and `checkpoint_step` are None where the negatives come from no generation or no
    checkpoint.
    """

    stream: PairStream
    passages: TokenRows
    generation: int | None = None
    checkpoint_step: int | None = None


class GenerationWatcher:
    """Watches the pointer to the published generation.

    `published()` is the number of the newest generation, `load(number)` reads one and raises where
    it cannot be read; `failed(number, error)` hears of that, and the generation is passed over.
    A resumed run first replays `switches` (step -> generation) up to `replay_until`, so that its
    steps are those of the run that was interrupted; only then does a newer generation come in.
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
        """The newest generation that could be taken for the batch of `step`; 0 = none is new."""
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

        Of several ranks one may have passed over, or never seen, what is the newest of another.
        """
        return number in self._loaded or self.is_replaying(step)

    def take(self, number: int) -> NegativesSnapshot:
        """The generation itself, read now if it was not; those before it are let go."""
        snapshot = self._loaded.get(number) or self._load(number)
        for old in [n for n in list(self._loaded) if n <= number]:  # a thread may add one meanwhile
            del self._loaded[old]
        self._asked = max(self._asked, number)
        return snapshot

    def _read(self, number: int) -> None:
        try:
            self._loaded[number] = self._load(number)
        except Exception as error:  # a damaged generation must not end the training
            with suppress(ResourceExhausted):  # nor must a disk that is too full to note it
                self._failed(number, error)
