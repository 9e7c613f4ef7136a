"""Runs the parts of a trial: each in a process of its own, which is killed at its limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ance_cli.formats import atomic
from benchmarks.gpu_trial import table
from benchmarks.gpu_trial.parts import Part
from benchmarks.gpu_trial.records import ENDED, Records
from benchmarks.gpu_trial.sizes import SizeName

_ROOT = Path(__file__).parents[2]
_TINY_SECONDS = 600.0
"""Limit of a part at the tiny size, which may run beside other work."""
_TAIL = 15
"""Lines of a failed part's output that are shown."""
_GRACE_SECONDS = 3.0
"""Between the signal that asks a part to end and the one that ends it."""


@dataclass(frozen=True)
class Run:
    """One run of the trial: where it writes, and how long each part and the whole may take."""

    out: Path
    work: Path
    size: SizeName
    records: Records
    say: Callable[[str], None]
    seconds: float | None = None
    """The limit of each part, instead of its own."""
    total: float | None = None

    @property
    def log(self) -> Path:
        """What the parts printed."""
        return self.out / "trial.log"


def run_parts(run: Run, parts: Sequence[Part], chosen: Sequence[Part]) -> list[table.Row]:
    """Run the chosen parts in order; returns the rows of all, which table.md has after each part
    as well."""
    started = time.monotonic()
    rows: list[table.Row] = []
    for part in chosen:
        limit = run.seconds or (part.seconds if run.size == "full" else _TINY_SECONDS)
        if run.total is not None:
            limit = min(limit, run.total - (time.monotonic() - started))
        if limit <= 0:
            run.records.add(part.key, ENDED, None, not_run="no time was left")
        else:
            _run_part(run, part, limit)
        rows = table.rows_of(parts, run.records.read(), full=run.size == "full")
        atomic.write_bytes(run.out / "table.md", table.markdown(rows).encode())
    return rows


def _run_part(run: Run, part: Part, limit: float) -> None:
    command = [
        sys.executable, "-m", "benchmarks.gpu_trial.child", part.module, "--key", part.key,
        "--out", str(run.out), "--work", str(run.work), "--size", run.size,
        "--run", run.records.run,
    ]  # fmt: skip
    environment = dict(os.environ)
    paths = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if run.size == "tiny":  # two threads that share a tiny matrix mostly wait for each other
        environment = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", **environment}
    run.say(f"{part.title} ({limit:.0f} s at most)")
    with open(run.log, "ab") as log:
        log.write(f"\n---- {part.key}\n".encode())
        log.flush()
        begins = log.tell()
        started = time.monotonic()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=environment,
        )  # fmt: skip
        try:
            code = child.wait(limit)
            how = "yes" if code == 0 else f"no: {_words(code)}"
        except subprocess.TimeoutExpired:
            how = f"no: killed at its limit of {limit:.0f} s"
        finally:
            _end(child)
    seconds = round(time.monotonic() - started, 1)
    run.records.add(part.key, ENDED, how, seconds=seconds, limit=limit)
    if how != "yes":
        with open(run.log, "rb") as written:
            written.seek(begins)
            lines = written.read().decode("utf-8", "replace").splitlines()
        run.say("\n".join([f"{part.key}: {how}", *(f"    {line}" for line in lines[-_TAIL:])]))


def _words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the part's process and those that it started, all in one process group."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, signum)
        except ProcessLookupError:
            break
        if child.poll() is None:
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    child.wait()
