"""Encoding in the processes of a Ray cluster, with the vectors of one machine.

A worker that is lost, alone or with its node, costs the blocks that it was encoding.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.encoding.workers import Pipe, Worker, serve, share_out
from ance_cli.errors import UsageProblem
from ance_cli.models.devices import set_threads
from ance_cli.models.ray_cluster import Cluster, check_shared

if TYPE_CHECKING:
    from ance_cli.encoding.blocks import EncodeJob, Listener


def encode_in_cluster(
    cluster: Cluster, jobs: Sequence[EncodeJob], blocks: Sequence[int], listener: Listener
) -> float:
    """`workers.share_out` over one actor per job."""
    events: queue.Queue[Any] = queue.Queue()
    workers = [_Actor(number, job, cluster, events) for number, job in enumerate(jobs, start=1)]
    return share_out(workers, events, blocks, listener)


class _Actor(Worker):
    """A worker process that Ray placed on a node; its messages are those of `workers`."""

    def __init__(
        self, number: int, job: EncodeJob, cluster: Cluster, events: queue.Queue[Any]
    ) -> None:
        import ray

        super().__init__(number, job)
        absolute = {
            name: os.path.abspath(path)
            for name in ("checkpoint", "tokens", "folder", "earlier")
            if (path := getattr(job, name))
        }
        # one thread sends messages, the other receives block numbers
        kind = ray.remote(_Encoder).options(max_concurrency=2, **cluster.reserved)
        self._actor = kind.remote(replace(job, **absolute).to_json(), cluster.threads)
        self._how = "with its process or its node"
        self.pid: int | None = None
        """On its own node; None until Ray has placed it."""
        self._thread = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._thread.start()

    def _listen(self, events: queue.Queue[Any]) -> None:
        import ray

        try:
            for ref in self._actor.run.options(num_returns="streaming").remote():
                message = orjson.loads(ray.get(ref))
                if "placed" in message:
                    host, self.pid = message["placed"]
                    self.name = f"{self.name} on {host}"
                    continue
                events.put((self, message))
        except ray.exceptions.RayTaskError as error:  # a bug, which other workers may not run into
            self._how = f"by {type(error.cause).__name__}: {error.cause}"
        except ray.exceptions.RayError:
            pass  # the actor is gone
        events.put((self, None))

    def send(self, block: int) -> None:
        self._actor.assign.remote(block)

    def no_more(self) -> None:
        if self.pid is None:
            self.end()
        else:
            self._actor.assign.remote(None)

    def end(self) -> None:
        import ray

        ray.kill(self._actor)
        self._thread.join()

    def ending(self) -> str:
        return self._how


class _Encoder:
    """Runs in a worker of Ray: encodes the blocks that the parent assigns."""

    def __init__(self, job: bytes, threads: int) -> None:
        set_threads(threads)
        self._job = job
        self._assigned: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def assign(self, block: int | None) -> None:
        self._assigned.put(block)

    def run(self) -> Iterator[bytes]:
        """Every message to the parent, as soon as there is one."""
        problems: list[Exception] = []

        def work() -> None:
            try:
                self._work()
            except Exception as problem:  # raised below, where Ray passes it on
                problems.append(problem)
            self._messages.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (message := self._messages.get()) is not None:
            yield message
        if problems:
            raise problems[0]

    def _work(self) -> None:
        from ance_cli.encoding.blocks import EncodeJob

        job, pipe = EncodeJob.from_json(self._job), Pipe(self._messages.put)
        pipe.send(placed=(socket.gethostname(), os.getpid()))
        try:
            for folder in (job.checkpoint, job.tokens, job.folder):
                check_shared(folder)
        except UsageProblem as problem:
            pipe.problem(problem)
            return
        serve(job, pipe, self._assigned.get)
