"""Encoding and searching in the processes of a Ray cluster, for results as one machine makes them.

The parent is a driver on one of the cluster's nodes: it prepares, hands out and publishes. The
workers read and write the same folders through a file system that all nodes share; only block
numbers, messages, queries and what was found for them travel through Ray. A worker that is lost,
alone or with its node, costs what it had in hand.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.encoding.workers import Pipe, Worker, serve, share_out
from ance_cli.errors import AnceError, ResourceExhausted, UsageProblem, hold_signals
from ance_cli.models.devices import choose_dtype, set_threads

if TYPE_CHECKING:
    import torch

    from ance_cli.encoding.blocks import EncodeJob, Listener
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.progress import Reporter
    from ance_cli.retrieval.exact import Found, Scores

LOCAL = "local"
"""In place of an address: a Ray of this machine's own, for as long as the command runs."""

_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_PARTS = 4
"""Parts of the corpus that a worker searches, on average: with fewer a lost one costs more, with
more there is more to merge."""


# ---------------------------------------------------------------- the cluster


@dataclass(frozen=True)
class Cluster:
    """What this command uses of a Ray cluster: so many workers, all of one kind."""

    num_workers: int
    device: str
    """Of each worker: `cuda:0`, the GPU that Ray gave it, or `cpu`."""
    threads: int

    @property
    def devices(self) -> list[torch.device]:
        """One for each worker."""
        import torch

        return [torch.device(self.device)] * self.num_workers

    @property
    def _share(self) -> dict[str, int]:
        """What Ray sets aside for a worker."""
        return {"num_cpus": self.threads, "num_gpus": int(self.device != "cpu")}

    def dtype(self, asked: str) -> str:
        """`--dtype` as a worker resolves it: this machine may have another kind of device."""
        import ray

        if asked != "auto":
            return asked
        resolve = ray.remote(_resolved_dtype).options(**self._share)
        return str(_outcome(resolve.remote(self.device)))

    def encode(self, jobs: Sequence[EncodeJob], blocks: Sequence[int], listener: Listener) -> float:
        """As `block_workers.share_out`, with one actor for each of the orders."""
        events: queue.Queue[Any] = queue.Queue()
        workers = [
            _Actor(number, each, self.threads, self._share, events)
            for number, each in enumerate(jobs, start=1)
        ]
        return share_out(workers, events, blocks, listener)

    def search(self, xq: Scores, embeddings: Embeddings, depth: int, reporter: Reporter) -> Found:
        """As `exact.exact_top_docs`: the corpus is searched in parts, each of which is a task. Ray
        starts a task again whose worker is lost."""
        import ray

        from ance_cli.retrieval.exact import merged

        search = ray.remote(_search).options(**self._share)
        with hold_signals():
            shared = ray.put(xq)
        folder = os.path.abspath(embeddings.folder)
        first_rows = embeddings.first_rows()
        running = {
            search.remote(shared, folder, depth, part, self.device, self.threads): part
            for part in _parts(embeddings, self)
        }
        best: Found | None = None
        with reporter.task("searching", embeddings.num_rows, "row") as bar:
            while running:
                done = _first_done(list(running))
                part = running.pop(done)
                found = _outcome(done)
                best = found if best is None else merged(best, found)
                bar.advance(int(first_rows[part.stop] - first_rows[part.start]))
        assert best is not None
        return best


def check_gpus(flag: str, gpus: str) -> None:
    """Refuse numbers of GPUs, which a cluster of several machines has no use for."""
    if gpus not in ("all", "none"):
        raise UsageProblem(
            f"{flag} {gpus} with --ray: which GPUs a worker gets is Ray's to say",
            hint=f"{flag} all for every GPU of the cluster, {flag} none for its CPUs",
        )


@contextmanager
def joined(
    address: str | None, gpus: str, cpu_workers: int | None, reporter: Reporter
) -> Iterator[Cluster | None]:
    """The Ray cluster at `address` (HOST:PORT, `auto`, or `local`) while the block runs; None where
    no address is given. `cpu_workers` None: as many as there is room for.

    Raises `UsageProblem` where Ray is not installed or does not answer there.
    """
    if address is None:
        yield None
        return
    check_gpus("--gpus", gpus)
    # without it Ray's handler of SIGTERM, which aborts, stands before Python's from `init` on
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    try:
        import ray
    except ImportError as error:
        raise UsageProblem(
            f"--ray {address}: Ray is not installed here ({error})",
            hint="pip install 'ance-cli[ray]', on every node of the cluster",
        ) from error
    # Ray begins and ends in a thread of its own: no signal cuts either in two, and it puts no
    # handlers of its own there. The thread stays: Ray's processes end with the one they came from.
    with ThreadPoolExecutor(1) as thread:
        try:
            _connect(address, cpu_workers or 1, thread)
            cluster = _cluster(gpus, cpu_workers)
            reporter.say(f"{cluster.num_workers} workers ({cluster.device}) on Ray at {address}")
            yield cluster
        finally:
            thread.submit(ray.shutdown).result()


def _connect(address: str, cpu_workers: int, thread: Executor) -> None:
    import ray

    hint = "HOST:PORT of a running cluster (ray start --head), or --ray local"
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would ask the network
        settings |= {
            "num_cpus": max(os.cpu_count() or 1, cpu_workers), "include_dashboard": False,
        }  # fmt: skip
    elif address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or "/" in address:
            raise UsageProblem(f"--ray {address!r}: expected HOST:PORT, auto or local", hint=hint)
        try:  # Ray itself would try for minutes, and then end the process
            socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise UsageProblem(f"--ray {address}: nobody answers ({error})", hint=hint) from error
    try:
        thread.submit(ray.init, address=address, **settings).result()
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageProblem(
            f"--ray {address}: no Ray there that lets this command in ({error})",
            hint=f"{hint}; RAY_AUTH_MODE and the token as on the cluster",
        ) from error


def _cluster(gpus: str, cpu_workers: int | None) -> Cluster:
    import ray

    with hold_signals():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers, device = cpu_workers, "cpu"
    if gpus == "all" and (num_gpus := sum(int(node.get("GPU", 0)) for node in nodes)):
        workers, device = num_gpus, "cuda:0"
        nodes = [node for node in nodes if node.get("GPU", 0)]
    cpus = [int(node.get("CPU", 0)) for node in nodes]

    def room(threads: int) -> int:
        """How many workers there is room for: none reaches over two nodes."""
        return sum(cpu // threads for cpu in cpus)

    asked = int(os.environ.get("OMP_NUM_THREADS", 0))  # --threads is the same
    most = (n for n in range(max(cpus), 0, -1) if room(n) >= (workers or 1))
    threads = asked or next(most, 1)
    return Cluster(workers or max(1, room(threads)), device, threads)


def _first_done(refs: list[Any]) -> Any:
    """The first task of these that ends.

    Signals are raised between two looks: Ray makes a `SystemError` of what one raises inside of it.
    """
    import ray

    while True:
        with hold_signals():
            done, _ = ray.wait(refs, timeout=_LOOK_SECONDS)
        if done:
            return done[0]


def _outcome(ref: Any) -> Any:
    """What a task returned; an `AnceError` is raised as in the task."""
    import ray

    try:
        ref = _first_done([ref])
        with hold_signals():
            return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AnceError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ResourceExhausted(
            f"a task of Ray was lost again and again ({_first_line(error)})",
            hint="`ray status` and `ray list tasks` tell why; then repeat the command",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].strip()


# ---------------------------------------------------------------- encoding


class _Actor(Worker):
    """A worker process that Ray placed somewhere; its messages are those of `block_workers`."""

    def __init__(
        self, number: int, job: EncodeJob, threads: int, share: dict[str, int], events: Any
    ) -> None:
        import ray

        super().__init__(number, job)
        there = {
            name: os.path.abspath(getattr(job, name)) for name in ("checkpoint", "tokens", "folder")
        }
        # one thread tells, the other one is told
        kind = ray.remote(_Encoder).options(max_concurrency=2, **share)
        self._actor = kind.remote(replace(job, **there).to_json(), threads)
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
        except ray.exceptions.RayTaskError as error:  # a bug, which the others may not meet
            self._how = f"by {type(error.cause).__name__}: {error.cause}"
        except ray.exceptions.RayError:
            pass  # it is gone
        events.put((self, None))

    def send(self, block: int) -> None:
        self._actor.hand.remote(block)

    def no_more(self) -> None:
        if self.pid is None:
            self.end()
        else:
            self._actor.hand.remote(None)

    def end(self) -> None:
        import ray

        ray.kill(self._actor)
        self._thread.join()

    def ending(self) -> str:
        return self._how


class _Encoder:
    """Lives in a worker of Ray: encodes the blocks that it is handed."""

    def __init__(self, job: bytes, threads: int) -> None:
        set_threads(threads)
        self._job = job
        self._handed: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def hand(self, block: int | None) -> None:
        self._handed.put(block)

    def run(self) -> Iterator[bytes]:
        """Everything that there is to tell, as it comes."""
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
        pipe.tell(placed=(socket.gethostname(), os.getpid()))
        try:
            for folder in (job.checkpoint, job.tokens, job.folder):
                _check_shared(folder)
        except UsageProblem as problem:
            pipe.tell(problem=(type(problem).__name__, problem.what, problem.hint))
            return
        serve(job, pipe, self._handed.get)


def _check_shared(folder: str) -> None:
    if not os.path.isdir(folder):
        raise UsageProblem(
            f"{folder}: not to be seen on {socket.gethostname()}, where Ray placed a worker",
            hint="keep data, checkpoints, outputs and --cache-dir on a file system that every node "
            "has under the same path",
        )


# ---------------------------------------------------------------- searching


def _parts(embeddings: Embeddings, cluster: Cluster) -> list[range]:
    """The blocks of each task: whole chunks, so that a part is searched as it is in one search."""
    import torch

    from ance_cli.retrieval.chunks import chunks_of

    # vectors go to a GPU as they are stored
    halves = cluster.device != "cpu" and embeddings.vectors.dtype.name == "float16"
    chunks = chunks_of(embeddings, torch.float16 if halves else torch.float32)
    num_parts = min(len(chunks), _PARTS * cluster.num_workers)
    cuts = [len(chunks) * nth // num_parts for nth in range(num_parts + 1)]
    return [range(chunks[a].start, chunks[b - 1].stop) for a, b in pairwise(cuts)]


def _search(xq: Scores, folder: str, depth: int, blocks: range, device: str, threads: int) -> Found:
    """In a worker of Ray: search some blocks of the corpus."""
    set_threads(threads)
    _check_shared(folder)
    import numpy as np
    import torch

    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.retrieval.exact import exact_top_docs

    xq = np.array(xq)  # Ray's own is read-only, which torch warns of
    return exact_top_docs(
        xq, Embeddings(Path(folder)), depth, [torch.device(device)], blocks=blocks
    )


def _resolved_dtype(device: str) -> str:
    """In a worker of Ray."""
    import torch

    return choose_dtype("auto", torch.device(device))
