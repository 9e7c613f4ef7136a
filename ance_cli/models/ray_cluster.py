"""A Ray cluster as a set of equal workers: connecting to it, and the results of its tasks.

The parent is a driver on one of the cluster's nodes: it prepares, assigns and publishes. The
workers read and write the same folders on a file system that all nodes share; Ray only carries
block numbers, messages, queries and search results.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ance_cli.config import ClusterConfig
from ance_cli.errors import AnceError, ResourceExhausted, UsageProblem, hold_signals
from ance_cli.models.devices import asked_threads, choose_dtype
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    import torch

LOCAL = "local"
"""Instead of an address: a Ray of this machine's own, for as long as the command runs."""

_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Cluster:
    """What this command uses of a Ray cluster: a number of workers, all of one kind."""

    num_workers: int
    device: str
    """Of each worker: `cuda:0`, the GPU that Ray gave it, or `cpu`."""
    threads: int

    @property
    def devices(self) -> list[torch.device]:
        """The device of each worker."""
        import torch

        return [torch.device(self.device)] * self.num_workers

    @property
    def reserved(self) -> dict[str, int]:
        """What Ray reserves for a worker."""
        return {"num_cpus": self.threads, "num_gpus": int(self.device != "cpu")}

    def dtype(self, asked: str) -> str:
        """`--dtype` as a worker resolves it: this machine may have another kind of device."""
        import ray

        if asked != "auto":
            return asked
        resolve = ray.remote(_resolved_dtype).options(**self.reserved)
        return str(result_of(resolve.remote(self.device)))


def _resolved_dtype(device: str) -> str:
    """In a worker of Ray."""
    import torch

    return choose_dtype("auto", torch.device(device))


def check_gpus(flag: str, gpus: str) -> None:
    """Refuse numbers of GPUs, which mean nothing in a cluster of several machines."""
    if gpus not in ("all", "none"):
        raise UsageProblem(
            f"{flag} {gpus} with --ray: Ray decides which GPUs a worker gets",
            hint=f"use {flag} all for every GPU of the cluster, or {flag} none for its CPUs",
        )


def check_shared(folder: str) -> None:
    """In a worker of Ray: `UsageProblem` if the node does not see a folder."""
    if not os.path.isdir(folder):
        raise UsageProblem(
            f"{folder}: does not exist on {socket.gethostname()}, where Ray placed a worker",
            hint="keep data, checkpoints, outputs and --cache-dir on a file system that every node "
            "has under the same path",
        )


# ---------------------------------------------------------------- connecting


@contextmanager
def joined(
    config: ClusterConfig, cpu_workers: int | None, reporter: Reporter
) -> Iterator[Cluster | None]:
    """The Ray cluster at `config.ray` (HOST:PORT, `auto` or `local`) while the block runs; None if
    the config names none. `cpu_workers` None: as many as fit.

    Raises `UsageProblem` if Ray is not installed or does not answer at the address.
    """
    address = config.ray
    if address is None:
        yield None
        return
    check_gpus("--gpus", config.gpus)
    # otherwise Ray's handler of SIGTERM, which aborts, replaces Python's from `init` on
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    try:
        import ray
    except ImportError as error:
        raise UsageProblem(
            f"--ray {address}: Ray is not installed here ({error})",
            hint="pip install 'ance-cli[ray]', on every node of the cluster",
        ) from error
    # Ray begins and ends in a thread of its own: no signal interrupts either, and Ray cannot
    # install handlers there. The thread stays, because Ray's processes end with the thread that
    # started them.
    with ThreadPoolExecutor(1) as thread:
        try:
            _connect(address, cpu_workers or 1, thread)
            cluster = _cluster(config.gpus, cpu_workers)
            reporter.say(f"{cluster.num_workers} workers ({cluster.device}) on Ray at {address}")
            yield cluster
        finally:
            thread.submit(ray.shutdown).result()


def _connect(address: str, cpu_workers: int, thread: Executor) -> None:
    import ray

    hint = "name HOST:PORT of a running cluster (ray start --head), or use --ray local"
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
            raise UsageProblem(f"--ray {address}: no answer ({error})", hint=hint) from error
    try:
        thread.submit(ray.init, address=address, **settings).result()
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageProblem(
            f"--ray {address}: Ray did not accept the connection ({error})",
            hint=f"{hint}; set RAY_AUTH_MODE and the token as on the cluster",
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
        """How many workers fit: a worker cannot span two nodes."""
        return sum(cpu // threads for cpu in cpus)

    asked = asked_threads()
    most = (n for n in range(max(cpus), 0, -1) if room(n) >= (workers or 1))
    threads = asked or next(most, 1)
    return Cluster(workers or max(1, room(threads)), device, threads)


# ---------------------------------------------------------------- results


def first_done(refs: list[Any]) -> Any:
    """The first of these tasks that ends, or of these streams that has a message or ends.

    Signals are raised between two polls: Ray turns an exception that a signal raises inside of Ray
    into a `SystemError`.
    """
    import ray

    while True:
        with hold_signals():
            done, _ = ray.wait(refs, timeout=_POLL_SECONDS)
        if done:
            return done[0]


def value_of(ref: Any) -> Any:
    """What a finished task, or an actor, returned; an `AnceError` is raised as in the task."""
    import ray

    try:
        with hold_signals():
            return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AnceError):
            raise error.cause from None
        raise


def result_of(ref: Any) -> Any:
    """What a task returns, once it ends."""
    import ray

    try:
        return value_of(first_done([ref]))
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise ResourceExhausted(
            f"Ray lost a task several times ({first_line(error)})",
            hint="look for the cause with `ray status` and `ray list tasks`, then repeat the "
            "command",
        ) from error


def first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].strip()
