"""Runs the stage commands of a loop as child processes, without torch.

Children end with the supervisor; one that died is restarted if a restart may help.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from ance_cli.call import MODULE
from ance_cli.errors import AnceError, ResourceExhausted, Stopped, die_with_parent
from ance_cli.formats.run_folder import SUPERVISOR, RunFolder
from ance_cli.progress import Reporter


def is_worth_restarting(code: int) -> bool:
    """Whether a restart may help a child that ended with this code.

    It may after a bug (1), after the disk or memory ran out (5), while a lease is held (6: for a
    moment, by the children of a supervisor that was killed), and after a signal that killed the
    child or one of its ranks (128 + signal; but 130 and 143 are requested stops). Any other code
    would only be repeated.
    """
    return code < 0 or code in (1, 5, 6) or (code > 128 and code not in (130, 143))


class StageFailed(AnceError):
    """A child ended with an error that a restart cannot fix; `exit_code` is the child's."""


def note(run: RunFolder, reporter: Reporter, what: str, **facts: Any) -> None:
    """Write what the supervisor saw to `events.jsonl`.

    If the disk is full, only warns: running children may continue, and a child that died may be
    restarted.
    """
    try:
        run.event(SUPERVISOR, what, **facts)
    except ResourceExhausted as problem:
        reporter.warn(problem.what)


def run_stage(
    command: Callable[[], Sequence[str]], max_restarts: int, run: RunFolder, reporter: Reporter
) -> None:
    """Run `ance` to its end, and restart it up to `max_restarts` times, with growing pauses.

    `command` gives the arguments at each start, because what an interrupted call left may change
    what remains to be done. Raises `StageFailed` with the child's exit code; a signal that arrives
    here is passed on to the child.
    """
    for attempt in range(max_restarts + 1):
        arguments = command()
        code = _run_once(arguments)
        if code == 0:
            return
        if run.exists:
            note(run, reporter, "stage failed", command=list(arguments), exit_code=code)
        if not is_worth_restarting(code) or attempt == max_restarts:
            break
        pause = 2**attempt
        reporter.warn(f"`ance {arguments[0]}` ended with {named(code)}; restarting it in {pause} s")
        time.sleep(pause)
    raise stage_failed(arguments, code)


def stage_failed(arguments: Sequence[str], code: int) -> StageFailed:
    """The failure of a child that is not restarted."""
    failure = StageFailed(
        f"`ance {' '.join(arguments)}` ended with {named(code)}",
        hint="see its own message above; repeat the `ance loop` command to continue from here",
    )
    failure.exit_code = code if code > 0 else 128 - code
    return failure


def named(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def start(arguments: Sequence[str], cpus: frozenset[int] = frozenset()) -> subprocess.Popen[bytes]:
    """Start `ance ARGUMENTS` as a child that ends with this process, on some of the CPUs (empty =
    all).

    The arguments are complete: the child reads no settings file, which might have changed since.
    """

    parent = os.getpid()

    def prepare() -> None:  # between fork and exec: nothing may be imported or locked here
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the kernel was asked
            os._exit(1)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return subprocess.Popen(
        [*MODULE, "ance_cli", *arguments, "--config", "none"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the child once, through this process
        preexec_fn=prepare,
    )


def _run_once(arguments: Sequence[str]) -> int:
    child = start(arguments)
    try:
        return child.wait()
    except Stopped as stop:
        child.send_signal(stop.signum)
        child.wait()
        raise
