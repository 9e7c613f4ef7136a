"""Probes of what may fail, crash or hang on a machine, run in a separate process.

`python -m ance_cli.setup.doctor_probes NAME...` prints one JSON line per probe. A package that does
not fit the machine can end the process that imports it (a missing instruction, two versions of a
library), so `ance doctor` itself imports none of them.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import MODULE, Call
from ance_cli.errors import AnceError

_IMPORT = "import "


@dataclass(frozen=True)
class Outcome:
    """What a probe found, or why it failed and, if known, how to fix it."""

    facts: Any = None
    error: str | None = None
    hint: str | None = None


def importing(module: str) -> str:
    """The name of the probe that imports a module."""
    return f"{_IMPORT}{module}"


def run_probes(names: Sequence[str], limit_seconds: float) -> dict[str, Outcome]:
    """The outcome of each probe, in the order given.

    All probes share one process. If the process dies or exceeds the limit, that is the outcome of
    the probe that was running, and the remaining probes run in a new process.
    """
    outcomes: dict[str, Outcome] = {}
    while left := [name for name in names if name not in outcomes]:
        output, end = _run(left, limit_seconds)
        for line in output.splitlines(keepends=True):
            if line.endswith(b"\n"):
                name, record = json.loads(line)
                outcomes[name] = Outcome(**record)
        if lost := next((name for name in left if name not in outcomes), None):
            outcomes[lost] = Outcome(error=f"the process that tried it {end}")
    return {name: outcomes[name] for name in names}


def _run(names: Sequence[str], limit_seconds: float) -> tuple[bytes, str]:
    """What the process printed, and how it ended."""
    try:
        done = subprocess.run(
            [*MODULE, "ance_cli.setup.doctor_probes", *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired as late:
        return late.stdout or b"", f"did not end within {limit_seconds:.0f} s"
    code = done.returncode
    died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return done.stdout, died


# ---------------------------------------------------------------- the probes

Probe = Callable[[], Any]
_PROBES: dict[str, Probe] = {}
"""Every probe by name, apart from imports; a probe returns facts that JSON can hold, or raises."""


def _probe(name: str) -> Callable[[Probe], Probe]:
    """Register a function as the probe `name`."""

    def register(probe: Probe) -> Probe:
        _PROBES[name] = probe
        return probe

    return register


@_probe("faiss")
def _faiss() -> dict[str, Any]:
    import faiss

    return {
        "gpu_build": hasattr(faiss, "StandardGpuResources"),
        "gpus": faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0,
        "options": faiss.get_compile_options().split(),
    }


@_probe("devices")
def _devices() -> list[dict[str, Any]]:
    """The CPU and the GPUs that torch sees.

    `dtype` is what `--dtype auto` means on the device, `cuda` the version that torch was built for
    (None = built without CUDA).
    """
    import torch

    from ance_cli.models.devices import choose_devices, choose_dtype

    cpu = torch.device("cpu")
    found: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "dtype": choose_dtype("auto", cpu),
            "cuda": torch.version.cuda,
        }
    ]
    for device in choose_devices("all"):
        if device != cpu:
            free, total = torch.cuda.mem_get_info(device)
            found.append(
                {
                    "device": str(device),
                    "name": torch.cuda.get_device_name(device),
                    "memory_bytes": total,
                    "free_bytes": free,
                    "dtype": choose_dtype("auto", device),
                }
            )
    return found


@_probe("ceilings")
def _ceilings() -> list[dict[str, Any]]:
    """GFLOP/s of a large matrix product on each device, in fp32 and in the dtype of `auto`.

    GPUs are also measured in fp16. A CPU emulates its other dtypes, slowly.
    """
    import torch

    from ance_cli.models.devices import choose_devices, choose_dtype
    from ance_cli.models.flops import matmul_ceiling

    found = []
    for device in dict.fromkeys([torch.device("cpu"), *choose_devices("all")]):
        dtypes = ["fp32", choose_dtype("auto", device), *(["fp16"] * (device.type == "cuda"))]
        for dtype in dict.fromkeys(dtypes):
            gflops = matmul_ceiling(device, dtype) / 1e9
            found.append({"device": str(device), "dtype": dtype, "gflops": round(gflops, 1)})
    return found


@_probe("java")
def _java() -> dict[str, Any]:
    from ance_cli.retrieval.bm25 import find_java

    home, version = find_java()
    return {"home": str(home), "version": version}


@_probe("lucene")
def _lucene() -> None:
    _search_with("lucene")


@_probe("bm25s")
def _bm25s() -> None:
    _search_with("bm25s")


def _search_with(engine: str) -> None:
    """Index three documents with a BM25 engine and search them."""
    from ance_cli.retrieval.bm25 import open_bm25

    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANCE_CACHE_DIR"] = folder
        corpus = Path(folder, "corpus.jsonl")
        texts = ("a river in the north", "the violin of granite", "an old engine")
        records = [{"_id": str(number), "text": text} for number, text in enumerate(texts)]
        corpus.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        bm25 = open_bm25(engine, corpus, k1=0.9, b=0.4, call=Call(threads=1))
        docs, _ = bm25.search(["violin"], 1)
        if docs.tolist() != [[1]]:
            raise RuntimeError(f"a search that should find document 1 found {docs.tolist()}")


def _try(name: str) -> dict[str, Any]:
    try:
        if name.startswith(_IMPORT):
            importlib.import_module(name.removeprefix(_IMPORT))
            return {}
        return {"facts": _PROBES[name]()}
    except AnceError as problem:
        return {"error": problem.what, "hint": problem.hint}
    except Exception as error:  # a broken package may raise anything, and that is the outcome
        return {"error": f"{type(error).__name__}: {error}"}


def _main(names: Sequence[str]) -> None:
    stdout = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print to stdout too
    with os.fdopen(stdout, "w", buffering=1) as out:
        for name in names:
            print(json.dumps([name, _try(name)]), file=out)


if __name__ == "__main__":
    _main(sys.argv[1:])
