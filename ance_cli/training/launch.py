"""Starts the ranks of a training segment as torchrun does, and ends with their exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from ance_cli.errors import AnceError, MachineGaveOut, Stopped

PEER_LOST = 76
"""Exit code of a rank that ended because another was gone; nobody outside sees it."""


@dataclass(frozen=True)
class Nodes:
    """The machines of a run: how many, which of them this is, and where they meet."""

    count: int = 1
    rank: int = 0
    endpoint: str | None = None
    """HOST:PORT on node 0."""


class RankFailed(AnceError):
    """A rank ended with an error; `exit_code` is its own."""

    exit_code = MachineGaveOut.exit_code


def launch(arguments: Sequence[str], num_ranks: int, nodes: Nodes, threads: int) -> None:
    """Run `python -m ARGUMENTS` as `num_ranks` processes on this machine, joined with those of
    the other nodes.

    Raises `RankFailed` with the exit code of the rank that failed first, and `Stopped` where a
    signal arrived here; the ranks are ended in both cases.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it ourselves
    os.environ["OMP_NUM_THREADS"] = str(threads or max(1, (os.cpu_count() or 1) // num_ranks))
    alone = nodes.count == 1
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
        logs_specs=DefaultLogsSpecs(),
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        elastic_launch(config, sys.executable)("-m", *arguments)
    except ChildFailedError as failed:
        # a rank whose peer is gone is not the cause, though it may well be seen to end first
        found = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        causes = {rank: code for rank, code in found.items() if code != PEER_LOST} or found
        rank, code = min(causes.items())
        named = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        problem = RankFailed(
            f"rank {rank} ended with {named}; the others were stopped",
            hint="its own message stands above; the same command continues from the newest state",
        )
        if code != PEER_LOST:
            problem.exit_code = code if code > 0 else 128 - code
        raise problem from None
    except SignalException as stop:
        raise Stopped(int(stop.sigval)) from None
    finally:  # torchrun leaves its own
        for number, handler in handlers.items():
            signal.signal(number, handler)
