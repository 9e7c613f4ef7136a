"""Notices that another rank's process or machine stands still.

A rank that ends closes its connections, which the others see at once. One that is stopped, or whose
machine is gone, closes nothing: the others would wait in a collective for as long as its backend
allows, for NCCL ten minutes. So a thread of each rank counts in the ranks' common store, and looks
whether the others count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

SECONDS = 5.0
"""Between two looks."""
MISSED = 8
"""So many looks without a change mean that a rank stands still. They are a rank's own looks: all
ranks may be stopped together and go on."""


class Heartbeat:
    """Counts for rank `rank` of `size` from `start` to `stop`, in a thread of its own.

    `store` is a `torch.distributed.Store`. `on_lost` is called once in that thread, with a
    sentence, if another rank or the store stands still: the main thread may be waiting in a
    collective, from which no exception wakes it.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        on_lost: Callable[[str], None],
        seconds: float = SECONDS,
    ) -> None:
        self._store = store.clone()  # a store's connection is for one thread
        self._store.set_timeout(timedelta(seconds=max(1.0, seconds * MISSED)))
        self._own = _key(rank)
        self._others = [other for other in range(size) if other != rank]
        self._on_lost, self._seconds = on_lost, seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        store.set(self._own, "0")
        store.wait([_key(other) for other in range(size)])

    def start(self) -> None:
        """Begin to count and to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; afterwards the other ranks may end too."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        seen: dict[int, bytes] = {}
        missed = dict.fromkeys(self._others, 0)
        waited = f"{self._seconds * MISSED:g} s"
        for number in count(1):
            if self._stopping.wait(self._seconds):
                return
            try:
                self._store.set(self._own, str(number))
                found = self._store.multi_get([_key(other) for other in self._others])
            except RuntimeError:
                if not self._stopping.is_set():
                    self._on_lost("the machine of rank 0 does not answer any more")
                return
            for rank, value in zip(self._others, found, strict=True):
                missed[rank] = missed[rank] + 1 if seen.get(rank) == value else 0
                seen[rank] = value
                if missed[rank] == MISSED:
                    self._on_lost(
                        f"rank {rank} has not answered for {waited}: its process or its machine "
                        "stopped"
                    )
                    return


def _key(rank: int) -> str:
    return f"ance-heartbeat-{rank}"
