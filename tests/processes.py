"""Processes of a loop as /proc shows them: who belongs to a supervisor, and in which role."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process; `born` keeps a reused pid apart."""

    pid: int
    born: int
    role: str

    def kill(self, signum: int = signal.SIGKILL) -> None:
        if alive(self):
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                pass  # it ended in between


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time, None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[19])


def alive(process: Process) -> bool:
    """Whether it still runs (a zombie does not)."""
    found = _stat(process.pid)
    return found is not None and found[2] == process.born and found[0] not in "ZX"


def family(root: int) -> list[Process]:
    """A supervisor and all that descends from it."""
    found = {int(path.name): _stat(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    members, wanted = [], {root}
    while more := [pid for pid, stat in found.items() if stat and
                   (pid in wanted or stat[1] in wanted) and pid not in members]:  # fmt: skip
        members += more
        wanted.update(more)
    return [Process(pid, found[pid][2], _role(pid)) for pid in members]


def _role(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    for word, role in (("ance_cli.cli.train_worker", "rank"), ("train-segment", "trainer"),
                       ("refresh", "inferencer"), ("loop", "supervisor")):  # fmt: skip
        if word in words:
            return role
    return "other"
