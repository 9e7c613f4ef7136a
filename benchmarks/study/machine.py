"""What a result says of the machine that it was made on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """The processor's name, the cores that this process may use, and the GPUs."""
    return {"cpu": _cpu(), "cores": usable_cores(), "gpus": _gpus()}


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Models of the GPUs, as NVIDIA's driver lists them."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        if found := re.search(r"^Model:\s*(.*)$", path.read_text(), re.M):
            names.append(found[1])
    return names
