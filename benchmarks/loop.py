"""What the loop costs beside the work itself: trainer's rate, supervisor, time to publication.

    python benchmarks/loop.py [--ckpt DIR] [--data DIR] [--steps 60] [--every 10] [--rounds 4]

Two CPU cores stand for two devices: `ance loop --mode async` pins the trainer to one and the
refresh daemon to the other. What the loop costs is the rate against the same trainer pinned to
the same core, with nobody beside it, and with a stranger on the other core: cores share their
memory and their clock, which devices do not, and `ance encode` takes of both what a refresh takes.
The three follow each other in rounds, since a machine drifts by more than what is looked for. Says
nothing on a machine that does other work: the table ends with its load.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ance_cli.config import DemoConfig
from ance_cli.progress import Silent
from ance_cli.setup.demo import packaged_encoder
from ance_cli.setup.docstrings import docstring_dataset

_TICKS = os.sysconf("SC_CLK_TCK")


def ance(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ance_cli", *map(str, arguments), "--quiet"]


def rate(run: Path) -> float:
    """Steps a second, the median over the lines of the log but the first (a cold start)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["steps_per_s"] for line in lines[1:])


def alone(prepared: Path, run: Path, core: int, options: argparse.Namespace) -> float:
    """The trainer on `core`, on the first generation, with nobody beside it."""
    shutil.copytree(prepared, run, symlinks=True)
    subprocess.run(
        ance("train-segment", "--follow", "-o", run, "--steps", options.steps, "--checkpoint-every",
             options.every, "--log-every", options.log_every, "--threads", 1, "--gpus", "none"),
        check=True, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    return rate(run)


@contextmanager
def stranger(recipe: list[object], output: Path, core: int) -> Iterator[None]:
    """`ance encode` on `core`, again and again."""
    command = shlex.join(ance("encode", *recipe[:4], "--passage-length", 64, "-o", output,
                              "--threads", 1, "--gpus", "none", "--force"))  # fmt: skip
    child = subprocess.Popen(
        ["sh", "-c", f"while {command}; do :; done"],
        stdout=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    try:
        time.sleep(10)  # past its start
        yield
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of one process without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def side_by_side(
    prepared: Path, run: Path, recipe: list[object], options: argparse.Namespace
) -> tuple[float, float]:
    """The loop on two cores: the trainer's rate, and the supervisor's share of a core, counted
    from when both sides run."""
    shutil.copytree(prepared, run, symlinks=True)
    child = subprocess.Popen(
        ance("loop", *recipe, "-o", run, "--mode", "async", "--refresh-every", options.every,
             "--segments", options.steps // options.every, "--log-every", options.log_every,
             "--gpus", "none"),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
        if child.poll() is not None:
            raise SystemExit(child.returncode)
    began, before = time.monotonic(), cpu_seconds(child.pid)
    used = elapsed = 0.0
    while child.poll() is None:
        used, elapsed = cpu_seconds(child.pid) - before, time.monotonic() - began
        time.sleep(0.5)
    if child.returncode:
        raise SystemExit(child.returncode)
    return rate(run), used / elapsed


def delays(run: Path) -> list[tuple[float, float]]:
    """For each generation of the loop: seconds from its checkpoint, or from when the refresh
    daemon had time for it, to its publication; and the sum of the stages' own seconds."""
    found = []
    published = 0.0
    for folder in sorted((run / "generations").glob("[0-9]*")):
        stats = json.loads((folder / "manifest.json").read_text())["stats"]
        made = run / "checkpoints" / f"step-{stats['checkpoint_step']:08d}" / "ance.json"
        begun = max(published, made.stat().st_mtime)
        published = (folder / "manifest.json").stat().st_mtime
        if stats["checkpoint_step"]:
            found.append((published - begun, stats["seconds"]["all"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--log-every", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    data = options.data or scratch / "data"
    if options.data is None:
        docstring_dataset(data, DemoConfig(), Silent())
    recipe = ["--data", data, "--ckpt", options.ckpt or packaged_encoder(), "--batch-size",
              options.batch_size, "--passage-length", 64, "--query-length", 32, "--depth",
              20, "--negatives", 4, "--total-steps", options.steps]  # fmt: skip
    training, mining = [*recipe[:10], *recipe[14:]], recipe[10:14]
    prepared = scratch / "prepared"
    for command in (ance("train-segment", *training, "--steps", 0, "-o", prepared),
                    ance("refresh", prepared, *mining)):  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    core, other = sorted(os.sched_getaffinity(0))[:2]
    rates: dict[str, list[float]] = {"alone": [], "stranger": [], "loop": []}
    supervisor: list[float] = []
    waits: list[tuple[float, float]] = []
    for number in range(options.rounds):
        rates["alone"].append(alone(prepared, scratch / f"alone-{number}", core, options))
        with stranger(recipe, scratch / "stranger", other):
            beside = alone(prepared, scratch / f"beside-{number}", core, options)
        rates["stranger"].append(beside)
        found, share = side_by_side(prepared, scratch / f"loop-{number}", recipe, options)
        rates["loop"].append(found)
        supervisor.append(share)
        waits += delays(scratch / f"loop-{number}")

    table = Table("what", "measured", box=None)
    for name, words in (("alone", "trainer alone on its core"),
                        ("stranger", "the same, a stranger encodes on the other core"),
                        ("loop", "trainer in the loop, refreshes on the other core")):  # fmt: skip
        every = ", ".join(f"{value:.2f}" for value in rates[name])
        table.add_row(words, f"{statistics.median(rates[name]):.2f} steps/s ({every})")
    for name, words in (("alone", "of the trainer alone"),
                        ("stranger", "of the trainer beside a stranger")):  # fmt: skip
        shares = [ours / its for ours, its in zip(rates["loop"], rates[name], strict=True)]
        table.add_row(f"{words}, by round", f"{statistics.median(shares):.1%} "
                      f"({', '.join(f'{share:.1%}' for share in shares)})")  # fmt: skip
    table.add_row("refreshes meanwhile", str(len(waits)))
    table.add_row("checkpoint to published generation, of the stages' own seconds",
                  f"{sum(a for a, _ in waits) / sum(b for _, b in waits):.1%} "
                  f"({waits[0][0]:.2f} s of {waits[0][1]:.2f} s the first)")  # fmt: skip
    table.add_row("the supervisor's share of a core", f"{statistics.median(supervisor):.2%}")
    table.add_row("load of the machine", " ".join(f"{load:.2f}" for load in os.getloadavg()))
    Console().print(table)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
