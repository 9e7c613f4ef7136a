"""Part 0: the machine, and the ceilings that the other parts are measured against."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from pathlib import Path

import torch

from ance_cli.models.flops import matmul_ceiling
from benchmarks.gpu_trial.attention import cudnn_attention
from benchmarks.gpu_trial.trial import Trial
from benchmarks.study.machine import describe

_PACKAGES = ("torch", "transformers", "sentence-transformers", "faiss-gpu", "faiss-cpu", "numpy")
_SECONDS = 1.0
"""How long each ceiling is measured."""


def run(trial: Trial) -> None:
    machine = describe()
    trial.record("machine", f"{machine['cpu']}, {machine['cores']} cores", **machine)
    trial.record("packages", _packages())
    if trial.cuda:
        with trial.arm("GPU", "CUDA, cuDNN, driver", "cuDNN attention is enabled"):
            properties = torch.cuda.get_device_properties(trial.device)
            trial.record("GPU", f"{properties.name}, {properties.total_memory >> 20:,} MiB")
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            trial.record("CUDA, cuDNN, driver", f"{torch.version.cuda}, {cudnn}, {_driver()}")
            trial.record("cuDNN attention is enabled", cudnn_attention())
    for dtype in ("bf16", "fp32", "fp16"):
        name = f"{dtype} matrix products"
        if not trial.multiplies(dtype):
            if name not in trial.recorded:
                trial.not_run(name, f"this CPU has no instructions for {dtype}")
            continue
        with trial.arm(name):
            seconds = _SECONDS if trial.cuda else _SECONDS / 4
            trial.record(name, matmul_ceiling(trial.device, dtype, seconds) / 1e12)
    _copies(trial)
    doctor = "ance doctor says that a loop can run"
    with trial.arm(doctor, "ance doctor --bench"):
        found = trial.ance("doctor", "--bench", expect=None)
        trial.record(doctor, found.code == 0)
        trial.record("ance doctor --bench", found.seconds)


def _packages() -> str:
    versions = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def _driver() -> str:
    """The version of NVIDIA's kernel module, as the driver itself says it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "unknown"


def _copies(trial: Trial) -> None:
    """Rates of copies on the device, and from the host to it."""
    numbers = trial.sizes.copied_bytes // 4
    on_host = torch.ones(numbers)
    on_device = on_host.to(trial.device)
    target = torch.empty_like(on_device)
    kinds = [("copy on the device, read and written", on_device, 2)]
    if trial.cuda:
        kinds.append(("pinned memory to the device", on_host.pin_memory(), 1))
        kinds.append(("pageable memory to the device", on_host, 1))
    for name, source, times in kinds:
        with trial.arm(name):
            best = min(_copy_seconds(trial, source, target) for _ in range(5))
            trial.record(name, times * trial.sizes.copied_bytes / best / 1e9)


def _copy_seconds(trial: Trial, source: torch.Tensor, target: torch.Tensor) -> float:
    started = time.perf_counter()
    target.copy_(source)
    if trial.cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
