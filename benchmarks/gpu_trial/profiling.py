"""What the GPU did during some work: how long it was busy, with which kernels, and how often the
host waited for it."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cuda_runtime", "cuda_driver")
_SHOWN = 12
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Profile:
    """Milliseconds and counts of a profiled piece of work."""

    wall_ms: float
    busy_ms: float
    """Any kernel or copy ran."""
    kernels: dict[str, tuple[float, int]]
    """Name -> milliseconds and calls."""
    waits: int
    """Calls in which the host waited for the GPU."""
    wait_ms: float

    @property
    def busy_percent(self) -> float:
        return 100 * self.busy_ms / self.wall_ms if self.wall_ms else 0.0

    def milliseconds(self, *words: str) -> float:
        """Of the kernels whose names contain one of the words."""
        return sum(
            ms
            for name, (ms, _) in self.kernels.items()
            if any(word in name.lower() for word in words)
        )

    def top(self) -> list[list[Any]]:
        """The kernels that took most, as [name, ms, calls]."""
        order = sorted(self.kernels.items(), key=lambda each: -each[1][0])[:_SHOWN]
        return [[name[:_NAME_LENGTH], round(ms, 3), calls] for name, (ms, calls) in order]


class Profiler:
    """Profiles what runs between `start` and `stop`."""

    def __init__(self) -> None:
        # without ProfilerActivity.CPU: to record each operator would slow the host down
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def start(self) -> None:
        torch.cuda.synchronize()
        self._profile.start()
        self._started = time.perf_counter()

    def stop(self) -> Profile:
        torch.cuda.synchronize()
        wall_ms = 1e3 * (time.perf_counter() - self._started)
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            return profile_of(orjson.loads(path.read_bytes())["traceEvents"], wall_ms)


def profiled(work: Callable[[], object]) -> Profile:
    """The profile of one call."""
    profiler = Profiler()
    profiler.start()
    work()
    return profiler.stop()


def profile_of(events: Iterable[Mapping[str, Any]], wall_ms: float) -> Profile:
    """The profile in the events of a Chrome trace, whose times are in microseconds."""
    spans: list[tuple[float, float]] = []
    took: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    waits, wait_us = 0, 0.0
    for event in events:
        if event.get("ph") != "X":
            continue
        category, name = event.get("cat"), str(event.get("name"))
        if category in _ON_GPU:
            spans.append((float(event["ts"]), float(event["ts"]) + float(event["dur"])))
            took[name] += float(event["dur"]) / 1e3
            calls[name] += 1
        elif category in _ON_HOST and "synchronize" in name.lower():
            waits += 1
            wait_us += float(event["dur"])
    kernels = {name: (ms, calls[name]) for name, ms in took.items()}
    return Profile(wall_ms, _covered(spans) / 1e3, kernels, waits, wait_us / 1e3)


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of some intervals: kernels of several streams may overlap."""
    covered, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return covered
