"""Searching queries in batches, which are halved if memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np


class QueryBatches:
    """The batches of one search, whose devices share the limit that memory sets.

    `say` is called with a sentence when batches become smaller because memory ran out.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._say = say
        self._most: int | None = None
        self._lock = threading.Lock()

    def search(self, num_queries: int, at_once: int, search: Callable[[slice], None]) -> None:
        """Call `search` with consecutive slices of the queries, at most `at_once` in each.

        A slice for which memory runs out is searched in halves, so `search` may not change results
        before all memory that it takes is allocated. Later slices have at most the size that
        fitted. Raises `ResourceExhausted` if a single query does not fit.
        """
        from ance_cli.models.inference import Positions, in_halves

        def search_part(part: Positions) -> None:
            search(slice(int(part[0]), int(part[-1]) + 1))

        start = 0
        while start < num_queries:
            stop = min(start + min(at_once, self._most or at_once), num_queries)
            in_halves(
                search_part,
                np.arange(start, stop),
                "the search of a single query",
                "search on the CPU: --gpus none",
                lambda _: None,
                lambda part: self._shrink(len(part)),
            )
            start = stop

    def _shrink(self, num_queries: int) -> None:
        """Make later batches half as large as a batch that did not fit."""
        with self._lock:
            is_first = self._most is None
            self._most = min(self._most or num_queries, num_queries // 2)
            if is_first:
                self._say("memory ran out: searching smaller batches of queries")
