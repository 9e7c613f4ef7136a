"""Kill the loop at random instants, again and again, and look whether anything was lost.

python benchmarks/soak.py --rounds 100 --mode sync
python benchmarks/soak.py --rounds 100 --mode async --seed 2 --ranks 2

A round is one kill: SIGKILL of the supervisor, the trainer, a rank, the refresh daemon or all of
them at once, or SIGTERM of the supervisor, at an instant that follows what happens in the run
folder. Whenever the supervisor has ended, the same command is given again; when a loop finishes,
the next begins in a new folder. Exits 1 at the first violation and keeps the folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests.world`

from tests.intact import (
    Violation,
    check_finished,
    check_intact,
    check_ledger,
    replayed,
    what_it_left,
)
from tests.processes import Process, alive, family
from tests.world import make_backbone, make_dataset

SLOW = float(os.environ.get("ANCE_SOAK_PATIENCE", "1"))
"""Multiplies every deadline, for a machine that does other work beside."""
ORPHANS_SECONDS = 15.0
"""How long children of a killed supervisor may take for the step in hand and its state."""
VICTIMS = {"supervisor": 4, "trainer": 4, "inferencer": 4, "rank": 2, "all": 2, "SIGTERM": 2}
"""How often each is drawn; one that is not running makes way for one that is."""


@dataclass(frozen=True)
class Recipe:
    """The loop that is disturbed: its mode, steps between refreshes, refreshes, ranks."""

    mode: str
    every: int = 40
    segments: int = 2
    ranks: int = 1

    @property
    def last_step(self) -> int:
        return self.every * self.segments

    def command(self, run: str) -> list[str]:
        """The words after `ance`."""
        flags = {
            "data": "data", "ckpt": "backbone", "query-length": 12, "passage-length": 24,
            "refresh-every": self.every, "segments": self.segments, "mode": self.mode,
            "batch-size": 8 // self.ranks, "lr": "1e-3", "dtype": "fp32", "depth": 12,
            "negatives": 4, "encode-dtype": "fp32", "log-every": 1, "cpu-workers": self.ranks,
            "gpus": "none",
        }  # fmt: skip
        return ["loop", *(word for name, value in flags.items()
                          for word in (f"--{name}", str(value))), "-o", run]  # fmt: skip


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    instants: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    runs: int = 0
    checks: int = 0
    longest_orphan: float = 0.0
    seconds: float = 0.0

    def table(self) -> str:
        rows = [
            ("kills", f"{self.kills.total()}: "
             + ", ".join(f"{name} {count}" for name, count in self.kills.most_common())),
            ("instants", ", ".join(f"{name} {count}" for name, count
                                   in self.instants.most_common())),
            ("starts of the loop", str(self.starts)),
            ("runs finished", str(self.runs)),
            ("looks at the whole folder", str(self.checks)),
            ("longest life of an orphan", f"{self.longest_orphan:.1f} s"),
            ("seconds", f"{self.seconds:.0f}"),
            ("violations", "0"),
        ]  # fmt: skip
        return "\n".join(f"{name:<26} {value}" for name, value in rows)


class Soak:
    """Runs the loop in `folder` and disturbs it; every draw comes from `rng`."""

    def __init__(self, folder: Path, recipe: Recipe, rng: random.Random) -> None:
        self.folder, self.recipe, self.rng = folder, recipe, rng
        self.tally = Tally()
        if not (folder / "data").exists():
            make_dataset(folder / "data")
            make_backbone(folder / "backbone")
        self._reference: dict | None = None
        self._child: subprocess.Popen | None = None
        self._struck = 0
        """Children killed since the supervisor was started."""

    @property
    def run(self) -> Path:
        return self.folder / f"run-{self.tally.runs + 1}"

    # ---------------------------------------------------------------- the loop

    def _start(self, run: Path) -> subprocess.Popen:
        with open(self.folder / "stderr.txt", "wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "ance_cli", *self.recipe.command(run.name), "--quiet"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def reference(self) -> dict:
        """What the undisturbed loop leaves."""
        if self._reference is None:
            run = self.folder / "undisturbed"
            if not run.exists():
                self._child = self._start(run)
                code, self._child = self._child.wait(), None
                self._expect(code, {0})
            self._reference = what_it_left(run)
        return self._reference

    def _expect(self, code: int, codes: set[int]) -> None:
        said = (self.folder / "stderr.txt").read_text(errors="replace")
        if code not in codes or "Traceback" in said:
            raise Violation(f"the loop ended with {code}, expected {sorted(codes)}:\n{said}")

    def rounds(self, count: int) -> Tally:
        """Go on until `count` kills were done and the last run is finished."""
        began = time.monotonic()
        try:
            if self.recipe.mode == "sync":
                self.reference()
            while self.tally.kills.total() < count or self._child is not None:
                if self._child is None:
                    self._child, self._struck = self._start(self.run), 0
                    self.tally.starts += 1
                if self.tally.kills.total() < count:
                    self._await_an_instant(self._child)
                else:
                    self._child.wait()
                if (code := self._child.poll()) is not None:
                    self._ended(code)
                else:
                    self._strike(self._child)
        finally:
            self.tally.seconds = time.monotonic() - began
            if self._child is not None:
                for process in family(self._child.pid):
                    process.kill()
                self._child.wait()
        return self.tally

    def _ended(self, code: int) -> None:
        """The supervisor ended by itself: finished, or out of patience with what we killed."""
        self._child = None
        self._expect(code, {0} if self._struck < 3 else {0, 128 + signal.SIGKILL})
        if code:
            return
        self._check()
        check_finished(self.run, self.recipe.last_step, self.recipe.every)
        if self.recipe.mode == "sync":
            found, wanted = what_it_left(self.run), self.reference()
            for part in wanted:
                if found[part] != wanted[part]:
                    raise Violation(f"{part} are not those of the undisturbed run")
        else:
            replayed(self.run, self.folder / "replay", self.recipe.last_step, self.recipe.every,
                     ["--cpu-workers", str(self.recipe.ranks)])  # fmt: skip
        shutil.rmtree(self.run)
        self.tally.runs += 1

    # ---------------------------------------------------------------- the kills

    def _await_an_instant(self, child: subprocess.Popen) -> None:
        """Wait for a random instant, or for the end of the loop."""
        run, rng = self.run, self.rng

        def grown(name: str, lines: int) -> Callable[[], bool]:
            def count() -> int:
                path = run / name
                return path.read_bytes().count(b"\n") if path.exists() else 0

            wanted = count() + lines
            return lambda: count() >= wanted

        def building(pattern: str) -> Callable[[], bool]:
            def there() -> set[tuple[Path, int]]:
                found = set()
                for path in run.glob(pattern):
                    with suppress(FileNotFoundError):  # it has its name by now
                        found.add((path, path.stat().st_ino))
                return found

            before = there()
            return lambda: bool(there() - before)

        kinds: dict[str, tuple[Callable[[], bool], float]] = {
            "any time": (lambda: True, rng.choice([2, 6, 12])),
            "in training": (grown("metrics.jsonl", rng.randint(1, self.recipe.every)), 0.02),
            "at a checkpoint": (building("checkpoints/.*.partial"), 0.03),
            "at a state": (building("state/.*.partial"), 0.03),
            "in a generation": (building("generations/.*.partial"), 4),
            "in its embeddings": (building("generations/.*.partial/.embeddings.partial"), 0.4),
            "in its candidates": (building("generations/.*.partial/.candidates.partial"), 0.05),
            "in its measuring": (building("generations/.*.partial/probe.json"), 0.5),
            "at a switch": (grown("switches.jsonl", 1), 0.05),
            "at a transition": (grown("events.jsonl", rng.randint(1, 3)), 0.05),
        }
        kind = rng.choice(list(kinds))
        happened, pause = kinds[kind]
        until = time.monotonic() + 60 * SLOW
        while not happened() and time.monotonic() < until:
            if child.poll() is not None:
                return
            time.sleep(0.003)
        time.sleep(rng.uniform(0, pause))
        if child.poll() is None:
            self.tally.instants[kind] += 1

    def _strike(self, child: subprocess.Popen) -> None:
        members = family(child.pid)
        roles = {process.role for process in members}
        drawn = self.rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        while drawn not in roles | {"all", "SIGTERM"}:
            drawn = self.rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        struck = [process for process in members if drawn in ("all", process.role)]
        if drawn == "SIGTERM":
            child.send_signal(signal.SIGTERM)
        elif drawn == "rank":
            self.rng.choice(struck).kill()
        else:
            for process in struck:
                process.kill()
        self.tally.kills[drawn] += 1
        if drawn in ("supervisor", "all", "SIGTERM"):
            code = child.wait(timeout=150 * SLOW)
            self._child = None
            # a SIGTERM that comes before there is a handler ends the process all the same
            ended = {143, -signal.SIGTERM, 0} if drawn == "SIGTERM" else {-signal.SIGKILL}
            self._expect(code, ended)
            if drawn == "supervisor" and self.rng.random() < 0.5:
                self._check()
                return  # the same command again while its children still end
            self._let_orphans_end(members)
        else:
            self._struck += 1
        self._check()
        print(f"{self.tally.kills.total()} kills, {self.tally.runs} runs", file=sys.stderr)

    def _let_orphans_end(self, members: list[Process]) -> None:
        since = time.monotonic()
        while left := [process for process in members if alive(process)]:
            self.tally.longest_orphan = max(self.tally.longest_orphan, time.monotonic() - since)
            if time.monotonic() - since > ORPHANS_SECONDS * SLOW:
                raise Violation(f"outlived the supervisor: {left}")
            time.sleep(0.05)

    def _check(self) -> None:
        if (self.run / "run.json").exists():
            check_intact(self.run)
            check_ledger(self.run)
            self.tally.checks += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--mode", choices=["sync", "async"], default="sync")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["ANCE_CACHE_DIR"] = str(folder / "cache")
    recipe = Recipe(chosen.mode, segments=2 if chosen.mode == "sync" else 4, ranks=chosen.ranks)
    soak = Soak(folder, recipe, random.Random(chosen.seed))
    try:
        tally = soak.rounds(chosen.rounds)
    except Violation as violation:
        print(f"VIOLATION after {soak.tally.kills.total()} kills in {soak.run}: {violation}")
        print(soak.tally.table().replace("violations                 0", ""))
        return 1
    print(tally.table())
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
