"""Runs cells: what is done is skipped, what another runner is at is left alone, the rest is done.

Several runners may share a work folder and a file of results. A cell is claimed by a lease in the
work folder; a runner that was killed loses its claim at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import orjson

from ance_cli import __version__
from ance_cli.errors import AnceError, Busy, Stopped, die_with_parent, hold_signals
from ance_cli.formats import lease
from ance_cli.formats.run_folder import now
from benchmarks.study import collecting, machine
from benchmarks.study.cell import Cell, Outcome, Placeholders
from benchmarks.study.results import Results

_POLL_SECONDS = 10.0
_TAIL = 15
"""Lines of a failed command's log that are shown."""


class CommandFailed(AnceError):
    """A command of a cell ended with another code than 0."""


class State(StrEnum):
    """The state of a cell."""

    DONE = "done"
    RUNNING = "running"
    READY = "missing"
    WAITING = "waiting"
    TOO_FEW_CORES = "needs more cores"


def trainer_state(
    cells: Mapping[str, Cell], results: Results, places: Placeholders
) -> dict[str, State]:
    """The state of each cell, without touching anything."""
    done = results.of(cells.values())
    cores = machine.usable_cores()
    states = {}
    for cell in cells.values():
        if cell.name in done:
            states[cell.name] = State.DONE
        elif cell.cores > cores:
            states[cell.name] = State.TOO_FEW_CORES
        elif (holder := lease.look(claim(cell, places))) and holder.alive:
            states[cell.name] = State.RUNNING
        elif all(cells[need].is_there(places) for need in cell.needs):
            states[cell.name] = State.READY
        else:
            states[cell.name] = State.WAITING
    return states


def claim(cell: Cell, places: Placeholders) -> Path:
    """The lease file of a cell."""
    return places.work / "cells" / f".{cell.name.replace('/', '.')}.lease"


def run(
    cells: Mapping[str, Cell],
    chosen: Sequence[str],
    results: Results,
    places: Placeholders,
    say: Callable[[str], None],
) -> list[str]:
    """Do the chosen cells, in their order, with what they need; returns those that failed.

    A cell whose need failed counts as failed. One that another runner holds is left to it, and is
    waited for only where a chosen cell needs it.
    """
    places.work.mkdir(parents=True, exist_ok=True)
    runner = _Runner(cells, results, places, say)
    pending = list(chosen)
    while pending:
        left = [name for name in pending if not runner.settled(name)]
        if left and len(left) == len(pending):
            others = [name for name in left if runner.is_held_by_another(name)]
            if len(others) == len(left):
                say(f"left to another runner: {', '.join(others)}")
                break
            time.sleep(_POLL_SECONDS)
        pending = left
    return sorted(runner.failed)


class _Runner:
    def __init__(
        self,
        cells: Mapping[str, Cell],
        results: Results,
        places: Placeholders,
        say: Callable[[str], None],
    ) -> None:
        self._cells, self._results, self._places, self._say = cells, results, places, say
        self._cores = machine.usable_cores()
        self._told: set[str] = set()
        self.failed: set[str] = set()

    def is_held_by_another(self, name: str) -> bool:
        holder = lease.look(claim(self._cells[name], self._places))
        return holder is not None and holder.alive

    def settled(self, name: str, again: bool = False) -> bool:
        """Do a cell unless it is done or has failed; False where another runner is in the way.

        `again` asks for the artifacts, too, which a line from another machine does not bring.
        """
        cell = self._cells[name]
        if name in self.failed or self._is_done(cell, again):
            return True
        if cell.cores > self._cores:
            self._say(
                f"{name}: skipped: it needs {cell.cores} cores, and this machine has {self._cores}"
            )
            return True
        for need in cell.needs:
            if not self.settled(need, again=True):
                return False
            if need in self.failed:
                self._say(f"{name}: not run, {need} has failed")
                self.failed.add(name)
                return True
        try:
            with lease.hold(claim(cell, self._places), name):
                if not self._is_done(cell, again):  # by the runner that we waited for
                    self._do(cell)
        except Busy as busy:
            if name not in self._told:
                self._say(f"{name}: {busy.what}")
                self._told.add(name)
            return False
        except AnceError as problem:
            self._say(f"{name}: failed: {problem.what}")
            if problem.hint:
                self._say(f"  {problem.hint}")
            self.failed.add(name)
        return True

    def _is_done(self, cell: Cell, with_artifacts: bool) -> bool:
        told = cell.name in self._results.of([cell])
        return told and (cell.is_there(self._places) or not with_artifacts)

    def _do(self, cell: Cell) -> None:
        """Run the commands of a cell and append its line, unless the line is there already."""
        self._say(f"{cell.name}: about {cell.minutes:g} min")
        load = os.getloadavg()[0]
        commands = [self._places.words(command) for command in cell.commands]
        summaries: list[dict[str, Any]] = []
        seconds: list[float | None] = []
        log = self._places.work / "logs" / f"{cell.name.replace('/', '.')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as handle:
            for number, words in enumerate(commands, start=1):
                started = time.monotonic()
                summaries.append(_summary(words, self._places.work, handle, log))
                took = time.monotonic() - started
                seconds.append(None if summaries[-1].get("up_to_date") else round(took, 2))
                self._say(f"  {number} of {len(commands)}: ance {words[0]}, {took:.0f} s")
        if cell.name in self._results.of([cell]):
            return
        outcome = Outcome(commands=commands, summaries=summaries, places=self._places)
        result = {
            "cell": cell.name,
            "recipe": cell.recipe,
            "commands": list(cell.commands),
            "seed": cell.seed,
            **collecting.measured(outcome),
            "seconds": seconds,
            "threads": self._places.threads,
            "machine": machine.describe(),
            "load": round(load, 2),
            "date": now(),
            "ance": __version__,
        }
        for collect in cell.collect:
            result |= collect(outcome)
        self._results.add(result)


# ---------------------------------------------------------------- one command


def _summary(words: Sequence[str], folder: Path, log: IO[bytes], name: Path) -> dict[str, Any]:
    """Run `ance WORDS` in `folder` and return its --json summary; stderr is written to the log.

    Raises `CommandFailed` with the end of the log, `Busy` where somebody else makes the output.
    """
    from_here = log.tell()
    log.write(f"ance {' '.join(words)}\n".encode())
    log.flush()
    with _child([sys.executable, "-m", "ance_cli", *words, "--json"], folder, log) as child:
        printed, _ = child.communicate()
    if child.returncode:
        log.flush()
        told = name.read_bytes()[from_here:].decode(errors="replace").splitlines()
        if child.returncode == Busy.exit_code:
            errors = [line for line in told if line.startswith("error: ")]
            raise Busy(errors[-1].removeprefix("error: ") if errors else "its output is being made")
        shown = "\n".join(told[-_TAIL:])
        raise CommandFailed(
            f"`ance {words[0]}` ended with exit code {child.returncode}\n{shown}",
            hint=f"{name} has all of it",
        )
    found = orjson.loads(printed) if printed.strip() else {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _child(
    command: Sequence[str], folder: Path, log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is asked to stop, and waited for, where the block does not end."""
    child = None
    try:
        with hold_signals():  # or one that comes just then would leave a child behind
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )
        yield child
    except Stopped as stop:
        if child is not None:
            child.send_signal(stop.signum)
            child.wait()
        raise
