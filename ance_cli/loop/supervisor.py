"""Runs the stage commands of the cycle as child processes, without torch.

The supervisor decides from the run folder alone what comes next, so it can be killed at any instant
and started again by the same command. Its children end with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ance_cli.errors import AnceError, ResourceExhausted, Stopped, die_with_parent
from ance_cli.formats.run_folder import RunFolder
from ance_cli.progress import Reporter


def may_pass(code: int) -> bool:
    """Whether a child that ended so is worth starting again: after a bug, a machine that gave out,
    a lease that is held (for a moment, by the children of a supervisor that was killed), and a
    signal that killed it or one of its own ranks (128 + signal; 130 and 143 are stops that somebody
    asked for). All other codes would come again."""
    return code < 0 or code in (1, 5, 6) or (code > 128 and code not in (130, 143))


class StageFailed(AnceError):
    """A child ended with an error that a restart cannot mend; `exit_code` is the child's."""


def note(run: RunFolder, reporter: Reporter, what: str, **facts: Any) -> None:
    """Note in `events.jsonl` what the supervisor saw.

    Where the disk is full it warns instead: what runs may go on, and what died is tried again.
    """
    try:
        run.event("supervisor", what, **facts)
    except ResourceExhausted as problem:
        reporter.warn(problem.what)


def run_stage(
    command: Callable[[], Sequence[str]], max_restarts: int, run: RunFolder, reporter: Reporter
) -> None:
    """Run `ance` to its end, starting it again a bounded number of times, with backoff.

    `command` gives the arguments at each start: what a first try left may change what is to do.
    Raises `StageFailed` with the child's exit code; passes a signal that arrives here on to it.
    """
    for attempt in range(max_restarts + 1):
        arguments = command()
        code = _run_once(arguments)
        if code == 0:
            return
        if run.exists:
            note(run, reporter, "stage failed", command=list(arguments), exit_code=code)
        if not may_pass(code) or attempt == max_restarts:
            break
        pause = 2**attempt
        reporter.warn(f"`ance {arguments[0]}` ended with {named(code)}; again in {pause} s")
        time.sleep(pause)
    raise stage_failed(arguments, code)


def stage_failed(arguments: Sequence[str], code: int) -> StageFailed:
    """The failure of a child that is not started again."""
    failure = StageFailed(
        f"`ance {' '.join(arguments)}` ended with {named(code)}",
        hint="its own message stands above; the same `ance loop` command continues from here",
    )
    failure.exit_code = code if code > 0 else 128 - code
    return failure


def named(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def start(arguments: Sequence[str], cpus: frozenset[int] = frozenset()) -> subprocess.Popen[bytes]:
    """Start `ance ARGUMENTS` as a child that ends with us, on some of the CPUs (empty = all).

    Its arguments are all there is: it reads no settings file, which might have changed meanwhile.
    """

    parent = os.getpid()

    def prepare() -> None:  # between fork and exec: nothing may be imported or locked here
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return subprocess.Popen(
        [sys.executable, "-m", "ance_cli", *arguments, "--config", "none"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the child through us, once
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


def cycle(
    run: RunFolder,
    last_step: int,
    segment_steps: int,
    refresh: Callable[[], None],
    train: Callable[[Path, int], None],
    stop_early: Callable[[], str | None],
) -> str | None:
    """Alternate refresh and training until the newest checkpoint stands at `last_step` and has a
    generation of its own. An unfinished segment is finished first, on its own negatives.

    `train` takes the negatives and the number of steps. Returns why `stop_early` wanted it to end
    before, else None. Raises `StageFailed` where a stage ended well and nothing moved.
    """
    before = None
    while True:
        newest = run.newest_checkpoint()
        published = run.published()
        unfinished = run.unfinished_segment()
        step = newest[0] if newest else 0
        standing = (step, published, unfinished)
        if standing == before:
            raise StageFailed(
                f"{run.path}: a stage ended without an error, and the run still stands at step "
                f"{step}",
                hint=f"look at the end of {run.events}",
            )
        before = standing
        if reason := stop_early():
            return reason
        if unfinished and unfinished.negatives:
            train(run.path / unfinished.negatives, unfinished.steps)
        elif published is None or published.checkpoint_step < step:
            refresh()
        elif step >= last_step:
            return None
        else:
            state = run.newest_state()  # ahead of the checkpoint where a follower was stopped
            trained = state[0] if state else 0
            negatives = run.published_folder(published).negatives
            train(negatives, segment_steps - trained % segment_steps)
