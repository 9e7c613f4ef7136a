"""The devices of a training segment, and one process for each, started as torchrun does."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ance_cli.call import MODULE
from ance_cli.errors import EXIT_BUG, AnceError, ResourceExhausted, Stopped, UsageProblem

if TYPE_CHECKING:
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

PEER_LOST = 76
"""Exit code of a rank that ended because another rank was gone; no user sees it."""

_STOPS = (signal.SIGINT, signal.SIGTERM)

KILLED_AFTER_SECONDS = 300.0
"""After a signal the ranks finish a step and save the state, which takes minutes for large models.
A rank that needs longer does neither."""


@dataclass(frozen=True)
class Nodes:
    """The machines that train together: how many, this one's number, and where they connect."""

    count: int = 1
    rank: int = 0
    endpoint: str | None = None
    """HOST:PORT on node 0."""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.rank < self.count:
            raise UsageProblem(
                f"--node-rank {self.rank} and --nnodes {self.count}: ranks count from 0 up to the "
                "number of machines"
            )
        if self.count > 1 and self.endpoint is None:
            raise UsageProblem(
                "--nnodes needs --rdzv-endpoint, the address to which the machines connect",
                hint="add --rdzv-endpoint HOST:PORT with a free port of node 0, on every node",
            )


@dataclass(frozen=True)
class Devices:
    """The devices of a segment: `gpus` or `cpu_workers` of each machine, and the machines."""

    gpus: str = "all"
    cpu_workers: int = 1
    nodes: Nodes = Nodes()

    def __post_init__(self) -> None:
        if self.cpu_workers < 1:
            raise UsageProblem("--cpu-workers must be at least 1")

    def here(self) -> list[torch.device]:
        """One device for each rank of this machine: its GPUs, or the CPU `cpu_workers` times."""
        from ance_cli.models.devices import choose_devices

        devices = choose_devices(self.gpus)
        return devices * self.cpu_workers if devices[0].type == "cpu" else devices

    @property
    def num_ranks(self) -> int:
        """Ranks of all machines together; every machine has as many as this one."""
        return len(self.here()) * self.nodes.count


class RankFailed(AnceError):
    """A rank ended with an error; `exit_code` is that rank's exit code."""

    exit_code = ResourceExhausted.exit_code


_SHUTDOWN_SECONDS = 20
"""A rank that is killed this long after the first failure was killed by torchrun, because it did
not end after SIGTERM."""


def _cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, int]:
    """The rank that failed first and its exit code.

    torchrun ends the other ranks with SIGTERM, and a rank that loses a peer fails as well, with an
    error of its own or, by its backend, with SIGABRT. All of them may be reported together.
    """
    first = min(failure.timestamp for failure in failures.values())

    def order(rank: int) -> tuple[int, int]:
        code = failures[rank].exitcode
        if code < 0 and -code not in (*_STOPS, signal.SIGABRT):
            late = failures[rank].timestamp >= first + _SHUTDOWN_SECONDS
            return (7 if late else 0), rank
        if code == PEER_LOST:
            return 6, rank
        if _stop(code):
            return 5, rank
        return {-signal.SIGABRT: 4, EXIT_BUG: 3}.get(code, 2), rank

    rank = min(failures, key=order)
    return rank, failures[rank].exitcode


def _stop(code: int) -> int | None:
    """The signal that asked a rank to stop, by its exit code; None if it ended for another
    reason."""
    signum = -code if code < 0 else code - 128
    return signum if signum in _STOPS else None


class _Stop:
    """Sends signals on to the ranks, which finish their step, save the state and end; after
    `KILLED_AFTER_SECONDS` it kills those that do not."""

    def __init__(self) -> None:
        self.signum = 0
        self.has_killed = False
        self._timer: threading.Timer | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        _to_ranks(signum)
        self.signum = signum
        if self._timer is None:
            self._timer = threading.Timer(KILLED_AFTER_SECONDS, self._kill)
            self._timer.daemon = True
            self._timer.start()

    def _kill(self) -> None:
        self.has_killed = True
        _to_ranks(signal.SIGKILL)

    def over(self) -> None:
        """No rank is left."""
        if self._timer:
            self._timer.cancel()


def _to_ranks(signum: int) -> None:
    for listed in Path("/proc/self/task").glob("*/children"):  # Linux, as are the GPUs
        for pid in listed.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signum)


def launch(arguments: Sequence[str], num_ranks: int, nodes: Nodes, threads: int) -> None:
    """Run `python -m ARGUMENTS` as `num_ranks` processes on this machine, joined with the processes
    of the other nodes.

    Raises `RankFailed` with the exit code of the rank that failed first, and `Stopped` if this
    process received a signal; no rank is left running in either case.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # what torchrun would log is reported below
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if threads or "OMP_NUM_THREADS" not in os.environ:
        own = threads or max(1, len(os.sched_getaffinity(0)) // num_ranks)
        os.environ["OMP_NUM_THREADS"] = str(own)
    alone = nodes.count == 1
    # torchrun leaves its folder behind, and removes error files: never name it /dev/null
    logs = tempfile.TemporaryDirectory(prefix="ance-ranks-", ignore_cleanup_errors=True)
    config = LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex if alone else "ance",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else str(nodes.endpoint),
        rdzv_configs={} if alone else {"rank": nodes.rank},
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=logs.name),
        signals_to_handle="SIGUSR1",  # after a signal that it handles, torchrun kills in 30 s
    )
    stop = _Stop()
    handlers = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        elastic_launch(config, MODULE[0])(*MODULE[1:], *arguments)
    except ChildFailedError as failed:
        rank, code = _cause(failed.failures)
        if stop.has_killed:
            late = RankFailed(
                f"a rank did not end within {KILLED_AFTER_SECONDS:g} s of "
                f"{signal.Signals(stop.signum).name} and was killed",
                hint="repeat the command to continue from the newest state",
            )
            late.exit_code = 128 + stop.signum
            raise late from None
        if signum := _stop(code):
            raise Stopped(signum) from None
        named = f"ended with exit code {code}"
        if code < 0:
            named = f"ended with signal {signal.Signals(-code).name}"
        elif code == PEER_LOST:
            named = "lost another rank" if alone else "lost a rank on another machine"
        problem = RankFailed(
            f"rank {rank} {named}; the others were stopped",
            hint="read that rank's message above, then repeat the command to continue from the "
            "newest state",
        )
        if code != PEER_LOST:
            problem.exit_code = code if code > 0 else 128 - code
        raise problem from None
    finally:
        stop.over()
        logs.cleanup()
        for number, handler in handlers.items():
            signal.signal(number, handler)
