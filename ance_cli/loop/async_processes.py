"""The trainer and the refresh daemon of an asynchronous loop: two children that share nothing but
the run folder."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.status_schema import shown_event
from ance_cli.loop.supervisor import is_worth_restarting, named, note, stage_failed, start
from ance_cli.progress import Reporter

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 120.0
"""For a child to finish its step or its block before it is killed."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY_SECONDS = 300.0
"""A child that ran this long before it died may be restarted as often as a new one."""
_DISK_FULL = 5


@dataclass(frozen=True)
class Child:
    """One child of an asynchronous loop.

    `command` gives the arguments of `ance` at each start, None if nothing is left to do. While
    `waits_for_room` is true, restarts after a full disk or memory do not count.
    """

    role: str
    command: Callable[[], Sequence[str] | None]
    cpus: frozenset[int]
    waits_for_room: Callable[[], bool] = lambda: False


class ManagedProcess:
    """Runs a child, and restarts it with growing pauses if a restart may help."""

    def __init__(self, child: Child, max_restarts: int, run: RunFolder, reporter: Reporter) -> None:
        self.is_done = False
        self._child, self._max_restarts = child, max_restarts
        self._run, self._reporter = run, reporter
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: Sequence[str] = ()
        self._failures = 0
        self._pause = _SHORTEST_PAUSE
        self._started = self._not_before = 0.0

    def tend(self) -> None:
        """Start the child, or see whether it ended; raises `StageFailed` if it ended and must not
        be restarted."""
        now = time.monotonic()
        if self.is_done:
            return
        if self._process is None:
            if now >= self._not_before:
                self._start(now)
            return
        code = self._process.poll()
        if code is None:
            return
        self._process = None
        if code == 0:
            self.is_done = True
            self._note("finished")
        else:
            self._plan_restart(now, code)

    def _start(self, now: float) -> None:
        arguments = self._child.command()
        if arguments is None:
            self.is_done = True
            return
        self._arguments = arguments
        self._process, self._started = start(arguments, self._child.cpus), now
        self._note("started", pid=self._process.pid)

    def _plan_restart(self, now: float, code: int) -> None:
        self._note("died", exit_code=code)
        if now - self._started > _STEADY_SECONDS:
            self._failures, self._pause = 0, _SHORTEST_PAUSE
        is_waiting = code == _DISK_FULL and self._child.waits_for_room()
        self._failures += not is_waiting
        if not is_worth_restarting(code) or self._failures > self._max_restarts:
            raise stage_failed(self._arguments, code)
        self._not_before = now + self._pause
        self._reporter.warn(
            f"the {shown_event(self._child.role)} ended with {named(code)}; restarting it in "
            f"{self._pause:.0f} s"
        )
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _note(self, what: str, **facts: Any) -> None:
        note(self._run, self._reporter, f"{self._child.role} {what}", **facts)

    def ask_to_stop(self) -> None:
        """Ask the child to end after the step or block that it is working on."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Wait until the child has ended; kill it if that takes too long."""
        if self._process is None:
            return
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def run_processes(
    processes: Sequence[ManagedProcess], stop_early: Callable[[], str | None]
) -> str | None:
    """Tend the processes until all are done; returns why they were stopped early, None if they were
    not.

    No process outlives this call, however it ends.
    """
    try:
        while not all(process.is_done for process in processes):
            for process in processes:
                process.tend()
            if reason := stop_early():
                return reason
            time.sleep(_POLL_SECONDS)
        return None
    finally:
        for process in processes:
            process.ask_to_stop()
        for process in processes:
            process.stop()
