"""The devices, the number format and the threads that a command uses."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from ance_cli.errors import UsageProblem

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

DTYPES = ("auto", "fp32", "bf16", "fp16")


def parse_gpus(text: str, flag: str = "--gpus") -> list[int] | None:
    """`0-3`, `0,2` or `none` (an empty list); None for `all`: every GPU of the machine. `flag` is
    what the user set."""
    if text == "all":
        return None
    if text == "none":
        return []
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
        if not match:
            raise UsageProblem(
                f"{flag} {text!r}: expected numbers such as 0-3 or 0,2, or `all`, or `none`",
                hint="nvidia-smi -L lists the GPUs of this machine",
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageProblem(
                f"{flag} {text!r}: {first}-{last} counts backwards",
                hint=f"{flag} {last}-{first}",
            )
        chosen.extend(range(first, last + 1))
    if len(set(chosen)) != len(chosen):
        raise UsageProblem(f"{flag} {text!r}: a device is named twice")
    return chosen


def choose_devices(gpus: str, flag: str = "--gpus") -> list[torch.device]:
    """The devices that `--gpus` names; the CPU if it names no GPU or the machine has none.

    On GPUs torch is kept from cuDNN's attention (`without_cudnn_attention`).
    """
    import torch

    chosen = parse_gpus(gpus, flag)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen is None:
        chosen = list(range(there))
    if missing := [gpu for gpu in chosen if gpu >= there]:
        raise UsageProblem(
            f"{flag} {gpus}: there is no GPU {missing[0]}: this machine has {there or 'none'}",
            hint=f"use {flag} all for every GPU of this machine, or {flag} none for the CPU",
        )
    devices = [torch.device("cuda", gpu) for gpu in chosen] or [torch.device("cpu")]
    without_cudnn_attention(devices)
    return devices


def need_local_gpus(local_gpus: str | None) -> None:
    """Refuse a `--local-gpus` that this machine does not have, before the cluster works for
    hours."""
    flag = "--local-gpus"
    if local_gpus is not None and parse_gpus(local_gpus, flag) != []:  # none needs no torch
        choose_devices(local_gpus, flag)


def choose_dtype(dtype: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 if the device supports it natively, fp16 on older GPUs, or else fp32."""
    import torch

    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu_has("avx512_bf16"):
        return "bf16"
    return "bf16" if cpu_has("amx_bf16") else "fp32"


def training_dtype(dtype: str, device: torch.device) -> str:
    """`choose_dtype` for training: fp32 instead of fp16, in which small gradients would become
    0."""
    chosen = choose_dtype(dtype, device)
    return "fp32" if chosen == "fp16" else chosen


def without_cudnn_attention(devices: list[torch.device]) -> None:
    """On GPUs, keep torch from cuDNN's attention, which it prefers from Hopper on.

    It plans each shape anew, for tens of milliseconds, and batches by length have dozens of shapes.
    """
    import torch

    if any(device.type == "cuda" for device in devices):
        torch.backends.cuda.enable_cudnn_sdp(False)


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device; the host does not wait for a GPU's copy."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def cpu_has(flag: str) -> bool:
    """Whether the processor lists an instruction set, such as `avx512_bf16` (Linux)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as handle:
            return any(line.startswith("flags") and flag in line.split() for line in handle)
    except OSError:
        return False


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch type of a resolved `--dtype`."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def asked_threads() -> int:
    """The threads that `--threads` or `OMP_NUM_THREADS` asks for, as OpenMP reads it: the first of
    a list, and 0 if it is not a number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and len(first) < 9 else 0


def set_threads(threads: int) -> None:
    """Limit the threads of this process (torch, faiss, tokenizers); 0 = every core.

    Call this before importing any of them: they read these variables once.
    """
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(threads)
