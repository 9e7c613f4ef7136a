"""Exact search in the processes of a Ray cluster, with the results of one machine.

Each worker searches the whole corpus for a slice of the queries, so that nothing has to be merged.
A worker that is lost, alone or with its node, costs the slice that it was searching.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ance_cli.errors import ResourceExhausted, hold_signals
from ance_cli.models.devices import set_threads
from ance_cli.models.ray_cluster import Cluster, check_shared, first_done, first_line, value_of

if TYPE_CHECKING:
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.progress import Bar, Reporter
    from ance_cli.retrieval.exact import Found, Positions, Scores

_PIECE_BYTES = 32 << 20
"""Results that a worker sends at once; two such pieces wait at most."""

_MOST_SLICES = 4
_WORTH_READING = {"cpu": 16_384, "cuda": 1 << 20}
"""Queries per slice from which on a worker gets several slices, up to `_MOST_SLICES`.

Reckoned, not measured. Of n slices, a lost worker costs one, and a slow worker searches fewer; but
each slice reads the corpus once more. Per row, a worker reads 2 d bytes and computes 2 d FLOPs for
each query (on a GPU 4 d). A CPU at 500 GFLOP/s needs 33 times as long for 16,384 queries as for
reading at 1 GB/s, so that four slices of this size cost 2 % and save three quarters of what may be
an hour. A GPU at 400 TFLOP/s needs the time of one reading for 200,000 queries, and a minute for
500,000 over 9M rows: it gets one slice. A million queries are read for a second time anyway
(`exact._GROUP_BYTES`).
"""


def search_in_cluster(
    cluster: Cluster, xq: Scores, embeddings: Embeddings, depth: int, reporter: Reporter
) -> Found:
    """The results of `exact.exact_top_docs`, searched by one actor per worker; the depth is at most
    the number of documents.

    The bits are those of a search on one device of the workers' kind with as many threads.
    """
    shape = len(xq), min(depth, embeddings.num_docs)
    out = np.empty(shape, np.float32), np.empty(shape, np.int32)
    with reporter.task("searching", embeddings.num_rows, "row") as bar:
        search = _Search(cluster, xq, out, embeddings, bar, reporter)
        try:
            search.run()
        finally:
            search.end()
    return out


def _slices(num_queries: int, cluster: Cluster) -> list[range]:
    """The queries of each slice: whole batches, so that each query is searched as on one
    machine."""
    from ance_cli.retrieval.top_k import BATCH

    worth = _WORTH_READING[cluster.device.partition(":")[0]]
    per_worker = min(max(num_queries // (cluster.num_workers * worth), 1), _MOST_SLICES)
    batches = -(-num_queries // BATCH)
    count = max(1, min(batches, cluster.num_workers * per_worker))
    cuts = [min(batches * nth // count * BATCH, num_queries) for nth in range(count + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


class _Worker:
    """The driver's view of an actor."""

    def __init__(self, number: int, device: str, actor: Any) -> None:
        self.name = f"worker {number} ({device})"
        self.actor = actor
        self.queries = range(0)
        """The slice that it is searching, if any."""


class _Search:
    """One search: its actors, and the slices that they have not finished."""

    def __init__(
        self,
        cluster: Cluster,
        xq: Scores,
        out: Found,
        embeddings: Embeddings,
        bar: Bar,
        reporter: Reporter,
    ) -> None:
        import ray

        self._xq, self._out, self._bar, self._say = xq, out, bar, reporter.say
        self._left = deque(_slices(len(xq), cluster))
        self._searched = dict.fromkeys(self._left, 0)
        """Rows of the corpus that each slice has been searched in."""
        self._unfinished = set(self._left)
        self._shown = 0
        self._idle: deque[_Worker] = deque()
        self._waited: dict[Any, _Worker] = {}
        """The stream of messages of each worker that Ray is placing or that is searching."""
        kind = ray.remote(_Searcher).options(**cluster.reserved)
        job = os.path.abspath(embeddings.folder), out[0].shape[1], cluster.device, cluster.threads
        self._workers: list[_Worker] = []
        for number in range(1, cluster.num_workers + 1):
            with hold_signals():
                worker = _Worker(number, cluster.device, kind.remote(*job))
                self._workers.append(worker)
                self._waited[_stream_of(worker.actor.placed)] = worker

    def run(self) -> None:
        while self._unfinished:
            while self._idle and self._left:
                self._assign(self._idle.popleft(), self._left.popleft())
            self._receive(first_done(list(self._waited)))

    def end(self) -> None:
        """End every actor, which frees its device."""
        import ray

        with hold_signals():
            for worker in self._workers:
                ray.kill(worker.actor)

    def _assign(self, worker: _Worker, queries: range) -> None:
        worker.queries = queries
        with hold_signals():
            stream = _stream_of(worker.actor.search, self._xq[queries.start : queries.stop])
        self._waited[stream] = worker

    def _receive(self, stream: Any) -> None:
        """Take the next message of a worker's stream."""
        import ray

        worker = self._waited[stream]
        try:
            with hold_signals():
                ref = next(stream, None)
            message = None if ref is None else value_of(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            del self._waited[stream]
            self._lose(worker, error)
            return
        if message is None:
            del self._waited[stream]
            self._unfinished.discard(worker.queries)
            worker.queries = range(0)
            self._idle.append(worker)
        elif isinstance(message, str) and worker.queries:
            self._say(f"{worker.name}: {message}")
        elif isinstance(message, str):
            worker.name += f" on {message}"
        elif isinstance(message, int):
            self._advance(worker.queries, message)
        else:
            self._write(worker.queries, *message)

    def _advance(self, queries: range, rows: int) -> None:
        """Note that a slice has been searched in some more rows. A slice is a part of the work as
        large as its part of the queries."""
        self._searched[queries] += rows
        shown = sum(len(part) * done for part, done in self._searched.items()) // len(self._xq)
        self._bar.advance(shown - self._shown)
        self._shown = shown

    def _write(self, queries: range, first: int, D: Scores, I: Positions) -> None:  # noqa: E741
        start = queries.start + first
        for filled, found in zip(self._out, (D, I), strict=True):
            filled[start : start + len(found)] = found

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """Let another worker search the slice of one that is gone."""
        import ray

        with hold_signals():
            ray.kill(worker.actor)  # it may only be out of reach
        if worker.queries:
            self._left.appendleft(worker.queries)
            self._advance(worker.queries, -self._searched[worker.queries])
        others = len(self._idle) + len(self._waited)
        if not others:
            raise ResourceExhausted(
                f"every Ray worker of the search ended ({first_line(error)})",
                hint="look for the cause with `ray status` and `ray list actors`, then repeat the "
                "command",
            )
        self._say(f"{worker.name} ended with its process or its node; {others} others continue")


def _stream_of(method: Any, *arguments: Any) -> Any:
    """Call an actor's generator; its worker waits while two messages have not been read."""
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
    return method.options(**options).remote(*arguments)


class _Searcher:
    """Runs in a worker of Ray: searches a corpus for one slice of the queries after another."""

    def __init__(self, folder: str, depth: int, device: str, threads: int) -> None:
        set_threads(threads)
        self._folder, self._depth, self._device = folder, depth, device

    def placed(self) -> Iterator[str]:
        """The host, as soon as Ray has placed the worker there."""
        check_shared(self._folder)
        yield socket.gethostname()

    def search(self, xq: Scores) -> Iterator[int | str | tuple[int, Scores, Positions]]:
        """First the numbers of rows searched, step by step, and what is to be said; then the
        results piece by piece: the first query, and the scores and positions from it on."""
        import torch

        from ance_cli.formats.embeddings import Embeddings
        from ance_cli.retrieval.exact import search_docs

        xq = np.array(xq)  # Ray's own array is read-only, and torch warns about that
        shape = len(xq), self._depth
        D, I = np.empty(shape, np.float32), np.empty(shape, np.int32)  # noqa: E741
        embeddings = Embeddings(Path(self._folder))
        devices, said = [torch.device(self._device)], deque[str]()
        for searched in search_docs(xq, embeddings, (D, I), devices, say=said.append):
            yield searched
            while said:
                yield said.popleft()
        rows = max(1, _PIECE_BYTES // (8 * self._depth))
        for first in range(0, len(xq), rows):
            piece = slice(first, first + rows)
            yield first, D[piece], I[piece]
