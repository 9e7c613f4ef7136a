"""What a part of the trial works with: its sizes, its folders, and how it records a number."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_trial.parts import Number
from benchmarks.gpu_trial.records import Records, Value
from benchmarks.gpu_trial.sizes import Sizes

if TYPE_CHECKING:
    import torch

NEEDS_CUDA = "needs CUDA"


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    output: str
    """stdout, then stderr."""
    seconds: float


@dataclass
class Trial:
    """One part of the trial, in its own process. `numbers` are those that the part may record."""

    part: str
    numbers: dict[str, Number]
    sizes: Sizes
    work: Path
    records: Records
    recorded: set[str] = field(default_factory=set)

    @cached_property
    def cuda(self) -> bool:
        import torch

        return torch.cuda.is_available()

    @cached_property
    def device(self) -> torch.device:
        import torch

        return torch.device("cuda", 0) if self.cuda else torch.device("cpu")

    def multiplies(self, dtype: str) -> bool:
        """Whether the device multiplies matrices of a number format in hardware."""
        from ance_cli.models.devices import choose_dtype

        return self.cuda or dtype == "fp32" or choose_dtype("auto", self.device) == dtype

    @property
    def gpus(self) -> str:
        """The device, as `--gpus` spells it."""
        return "0" if self.cuda else "none"

    def record(self, name: str, value: Value, **more: Any) -> None:
        """Record a number; `more` is kept with it and not shown in the table."""
        self.records.add(self.part, name, value, self.numbers[name].unit, **more)
        self.recorded.add(name)
        print(f"{name}: {value} {self.numbers[name].unit}", flush=True)

    def not_run(self, name: str, why: str) -> None:
        """Record that a number was not measured."""
        self.records.add(self.part, name, None, self.numbers[name].unit, not_run=why)
        self.recorded.add(name)
        print(f"{name}: not run: {why}", flush=True)

    def skip_what_needs_cuda(self) -> None:
        """Say of the numbers that need a GPU that there is none."""
        for name, number in self.numbers.items():
            if number.needs_cuda and not self.cuda:
                self.not_run(name, NEEDS_CUDA)

    @contextmanager
    def arm(self, *names: str) -> Iterator[None]:
        """The block measures these numbers. If it fails, those that it has not recorded are not
        run, and the part goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}" if str(
                error
            ).strip() else type(error).__name__  # fmt: skip
            for name in names:
                if name not in self.recorded:
                    self.not_run(name, why)

    def ance(self, *words: object, expect: int | None = 0, **environment: str) -> Finished:
        """Run a command of ance in a process of its own; raises `RuntimeError` unless it ends with
        the code that is expected (None: any code)."""
        started = time.perf_counter()
        found = subprocess.run(
            ance_command(*words), env={**os.environ, **environment}, text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )  # fmt: skip
        done = Finished(
            found.returncode, found.stdout + found.stderr, time.perf_counter() - started
        )
        print(f"$ ance {' '.join(map(str, words))}\n{done.output}", flush=True)
        if expect is not None and done.code != expect:
            raise RuntimeError(f"ance {words[0]} ended with exit code {done.code}")
        return done

    def scratch(self, name: str) -> Path:
        """A place in the work folder for what this part makes; nothing is there yet."""
        folder = self.work / self.part
        folder.mkdir(exist_ok=True)
        return folder / name


def ance_command(*words: object) -> list[str]:
    """A command of ance as a child process."""
    return [sys.executable, "-P", "-m", "ance_cli", *map(str, words)]
