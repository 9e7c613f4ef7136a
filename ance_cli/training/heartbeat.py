"""Notices that another rank's process or machine stands still.

A rank that ends closes its connections, which the others see at once. One that is stopped, or whose
machine is gone, closes nothing: the others would wait in a collective for as long as its backend
allows, for NCCL ten minutes. So a thread of each rank counts in the ranks' common store and reads
what the others count, and another thread looks whether the counts grow. There are two because the
store may stand still as well: then a call of torch's store does not return, whatever its timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from typing import Any

SECONDS = 5.0
"""Between two counts, and between two looks."""
MISSED = 8
"""So many looks without a change mean that a rank stands still. They are a rank's own looks: all
ranks may be stopped together and go on."""


class Heartbeat:
    """Counts for rank `rank` of `size` from `start` to `stop`, and looks whether the others do.

    `store` is a `torch.distributed.Store`. `on_lost` is called once, in a thread, with a sentence,
    if another rank or the store stands still: the main thread may be waiting in a collective, from
    which no exception wakes it.
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
        self._own = _key(rank)
        self._others = [other for other in range(size) if other != rank]
        self._counts: list[bytes] = [b"0"] * len(self._others)
        """Those of the others; a new list for each answer of the store."""
        self._on_lost, self._seconds = on_lost, seconds
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True)
            for work in (self._count, self._look)
        ]
        store.set(self._own, "0")
        store.wait([_key(other) for other in range(size)])

    def start(self) -> None:
        """Begin to count and to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; afterwards the other ranks may end too."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._seconds * MISSED)

    def _count(self) -> None:
        for number in count(1):
            if self._stopping.wait(self._seconds):
                return
            try:
                self._store.set(self._own, str(number))
                self._counts = self._store.multi_get([_key(other) for other in self._others])
            except RuntimeError:
                self._lose("the machine of rank 0 does not answer any more")

    def _look(self) -> None:
        waited = f"{self._seconds * MISSED:g} s"
        counts, unanswered, missed = self._counts, 0, [0] * len(self._others)
        while not self._stopping.wait(self._seconds):
            seen, counts = counts, self._counts
            if counts is seen:  # says nothing about the others
                unanswered += 1
                if unanswered == MISSED:
                    self._lose(f"the machine of rank 0 has not answered for {waited}")
                continue
            unanswered = 0
            missed = [
                looks + 1 if now == before else 0
                for looks, now, before in zip(missed, counts, seen, strict=True)
            ]
            if MISSED in missed:
                rank = self._others[missed.index(MISSED)]
                self._lose(
                    f"rank {rank} has not answered for {waited}: its process or its machine stopped"
                )

    def _lose(self, what: str) -> None:
        """Say what is lost, and end both threads."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._on_lost(what)


def _key(rank: int) -> str:
    return f"ance-heartbeat-{rank}"
