"""Trainer and inferencer side by side: two children that share nothing but the run folder."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.supervisor import may_pass, named, note, stage_failed, start
from ance_cli.progress import Reporter

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 120.0
"""For a child to finish its step or its block before it is killed."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY_SECONDS = 300.0
"""A child that ran this long before it died has its tries back."""
_DISK_FULL = 5


class ManagedProcess:
    """One child, started again, with backoff, where it died of what may pass.

    `command` gives the arguments of `ance` at each start, None where nothing is left to do.
    `endures` says how long a full disk or memory is waited for: as long as it is true, such tries
    do not count among the `max_restarts`.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str] | None],
        cpus: frozenset[int],
        max_restarts: int,
        run: RunFolder,
        reporter: Reporter,
        endures: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.is_done = False
        self._command, self._cpus = command, cpus
        self._max_restarts, self._run, self._reporter = max_restarts, run, reporter
        self._endures = endures
        self._child: subprocess.Popen[bytes] | None = None
        self._arguments: Sequence[str] = ()
        self._failures = 0
        self._pause = _SHORTEST_PAUSE
        self._started = self._not_before = 0.0

    def tend(self) -> None:
        """Start the child, or look what became of it; raises `StageFailed` where it is not to be
        started again."""
        now = time.monotonic()
        if self.is_done:
            return
        if self._child is None:
            if now >= self._not_before:
                self._start(now)
            return
        code = self._child.poll()
        if code is None:
            return
        self._child = None
        if code == 0:
            self.is_done = True
            self._note("finished")
            return
        self._note("died", exit_code=code)
        if now - self._started > _STEADY_SECONDS:
            self._failures, self._pause = 0, _SHORTEST_PAUSE
        patient = code == _DISK_FULL and self._endures()
        self._failures += not patient
        if not may_pass(code) or self._failures > self._max_restarts:
            raise stage_failed(self._arguments, code)
        self._not_before = now + self._pause
        self._reporter.warn(
            f"the {self.name} ended with {named(code)}; again in {self._pause:.0f} s"
        )
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _start(self, now: float) -> None:
        arguments = self._command()
        if arguments is None:
            self.is_done = True
            return
        self._arguments = arguments
        self._child, self._started = start(arguments, self._cpus), now
        self._note("started", pid=self._child.pid)

    def _note(self, what: str, **facts: Any) -> None:
        note(self._run, self._reporter, f"{self.name} {what}", **facts)

    def ask_to_stop(self) -> None:
        """Tell the child to end once it has finished what it has in hand."""
        if self._child is not None:
            self._child.terminate()

    def stop(self) -> None:
        """Wait until the child has ended as it was asked; it is killed if that takes too long."""
        if self._child is None:
            return
        try:
            self._child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None


def run_processes(
    processes: Sequence[ManagedProcess], stop_early: Callable[[], str | None]
) -> str | None:
    """Tend the sides until all are done; returns why they were stopped before, else None.

    Whatever ends this ends them.
    """
    try:
        while not all(side.is_done for side in processes):
            for side in processes:
                side.tend()
            if reason := stop_early():
                return reason
            time.sleep(_POLL_SECONDS)
        return None
    finally:
        for side in processes:
            side.ask_to_stop()
        for side in processes:
            side.stop()


def split_cpus(split: tuple[int, int]) -> tuple[frozenset[int], frozenset[int]]:
    """This process's CPUs dealt out to trainer and inferencer in the ratio `split`, at least one
    each; the same one where there is no other."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        return frozenset(cpus), frozenset(cpus)
    first = round(len(cpus) * split[0] / sum(split))
    first = min(max(first, 1), len(cpus) - 1)
    return frozenset(cpus[:first]), frozenset(cpus[first:])
