"""What may fail, crash or hang on a machine, tried in a process of its own:
`python -m ance_cli.setup.doctor_probes NAME...` prints one JSON line for each trial.

A package that does not fit the machine may end the process that imports it (a missing instruction,
two versions of a library), so nothing here is imported by whoever asks.
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

from ance_cli.call import Call
from ance_cli.errors import AnceError

_IMPORT = "import "


@dataclass(frozen=True)
class Outcome:
    """What a trial found, or why it failed and, where that is known, what mends it."""

    facts: Any = None
    error: str | None = None
    hint: str | None = None


def importing(module: str) -> str:
    """The trial that imports a module."""
    return f"{_IMPORT}{module}"


def run_probes(names: Sequence[str], limit_seconds: float) -> dict[str, Outcome]:
    """The outcome of each trial, in the order given.

    They share a process. Where it dies, or takes longer than the limit, that is the outcome of the
    trial in hand, and the rest go on in a new one.
    """
    outcomes: dict[str, Outcome] = {}
    while left := [name for name in names if name not in outcomes]:
        told, end = _run(left, limit_seconds)
        for line in told.splitlines(keepends=True):
            if line.endswith(b"\n"):
                name, record = json.loads(line)
                outcomes[name] = Outcome(**record)
        if lost := next((name for name in left if name not in outcomes), None):
            outcomes[lost] = Outcome(error=f"the process that tried it {end}")
    return {name: outcomes[name] for name in names}


def _run(names: Sequence[str], limit_seconds: float) -> tuple[bytes, str]:
    """What the process said, and how it ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ance_cli.setup.doctor_probes", *names],
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


# ---------------------------------------------------------------- the trials


def _faiss() -> dict[str, Any]:
    import faiss

    return {
        "gpu_build": hasattr(faiss, "StandardGpuResources"),
        "gpus": faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0,
        "options": faiss.get_compile_options().split(),
    }


def _devices() -> list[dict[str, Any]]:
    """The CPU and the GPUs that torch sees; `dtype` is what `--dtype auto` means there,
    `cuda` the version that torch was built for (None = none)."""
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


def _ceilings() -> list[dict[str, Any]]:
    """GFLOP/s of a large matrix product: on each device in fp32 and what `auto` means there (others
    are emulated on a CPU, and slow), on GPUs in fp16 too."""
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


def _java() -> dict[str, Any]:
    from ance_cli.retrieval.bm25 import find_java

    home, version = find_java()
    return {"home": str(home), "version": version}


def _bm25(engine: str) -> Callable[[], None]:
    def search() -> None:
        from ance_cli.retrieval.bm25 import open_bm25

        with tempfile.TemporaryDirectory() as folder:
            os.environ["ANCE_CACHE_DIR"] = folder
            corpus = Path(folder, "corpus.jsonl")
            texts = ("a river in the north", "the violin of granite", "an old engine")
            records = [{"_id": str(place), "text": text} for place, text in enumerate(texts)]
            corpus.write_text("".join(f"{json.dumps(record)}\n" for record in records))
            bm25 = open_bm25(engine, corpus, k1=0.9, b=0.4, call=Call(threads=1))
            docs, _ = bm25.search(["violin"], 1)
            if docs.tolist() != [[1]]:
                raise RuntimeError(f"a search that finds document 1 found {docs.tolist()}")

    return search


_TRIALS: dict[str, Callable[[], Any]] = {
    "faiss": _faiss, "devices": _devices, "java": _java, "lucene": _bm25("lucene"),
    "bm25s": _bm25("bm25s"), "ceilings": _ceilings,
}  # fmt: skip


def _try(name: str) -> dict[str, Any]:
    try:
        if name.startswith(_IMPORT):
            importlib.import_module(name.removeprefix(_IMPORT))
            return {}
        return {"facts": _TRIALS[name]()}
    except AnceError as problem:
        return {"error": problem.what, "hint": problem.hint}
    except Exception as error:  # a broken package may raise anything, which is what is asked here
        return {"error": f"{type(error).__name__}: {error}"}


def _main(names: Sequence[str]) -> None:
    stdout = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no outcome
    with os.fdopen(stdout, "w", buffering=1) as out:
        for name in names:
            print(json.dumps([name, _try(name)]), file=out)


if __name__ == "__main__":
    _main(sys.argv[1:])
