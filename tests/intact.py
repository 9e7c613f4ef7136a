"""What must hold in a run folder at any instant, and when a loop has finished."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.world import tree

LARGE = ("embeddings", "index", "candidates")


class Violation(AssertionError):
    """Something that may never be seen was seen."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise Violation(what)


def ledger(path: Path) -> list[dict]:
    """The records of an append-only file, but for a last line without an end."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def steps_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*"))


def check_intact(run: Path) -> None:
    """Every name is a whole artifact; others may be at work meanwhile."""
    for folder in steps_in(run / "checkpoints"):
        facts = json.loads((folder / "ance.json").read_text())
        require(folder.name == f"step-{facts['training_step']:08d}", f"{folder}: {facts}")
        require(list(folder.rglob("*.safetensors")), f"{folder}: without weights")
        for path in folder.rglob("*.safetensors"):
            check_tensors(path.read_bytes(), path)
    for folder in steps_in(run / "state"):
        _unless_pruned(folder, check_state)
    for folder in sorted((run / "generations").glob("[0-9]*")):
        _unless_pruned(folder, check_generation)
    if (run / "negatives.json").exists():
        pointer = json.loads((run / "negatives.json").read_text())
        folder = run / pointer["path"]
        stats = json.loads((folder / "manifest.json").read_text())["stats"]
        require(stats["checkpoint_step"] == pointer["checkpoint_step"], f"{pointer}: {stats}")
        for name in ("embeddings", "candidates"):
            require((folder / name / "manifest.json").exists(), f"{folder / name} is gone")
    for link in ("latest", "best"):
        if (run / link).is_symlink():
            require((run / link / "ance.json").exists(), f"{link} -> {os.readlink(run / link)}")
    for name in ("segments.jsonl", "switches.jsonl", "metrics.jsonl", "events.jsonl"):
        ledger(run / name)


def _unless_pruned(folder: Path, check) -> None:
    """A folder that loses its name while it is looked at is not half there."""
    try:
        check(folder)
    except (FileNotFoundError, NotADirectoryError, Violation):
        if folder.exists():
            check(folder)  # what was pruned meanwhile is gone now


def check_tensors(data: bytes, path: Path) -> None:
    """The header of a safetensors file covers its bytes, and no number is not finite."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    ends = max(value["data_offsets"][1] for value in tensors)
    require(len(data) == 8 + size + ends, f"{path}: {len(data)} bytes, its header says otherwise")
    for value in tensors:
        if value["dtype"] == "F32":
            start, end = (8 + size + offset for offset in value["data_offsets"])
            require(np.isfinite(np.frombuffer(data[start:end], "<f4")).all(), f"{path}: not finite")


def check_state(folder: Path) -> None:
    facts = json.loads((folder / "state.json").read_text())
    require(folder.name == f"step-{facts['step']:08d}", f"{folder}: {facts}")
    for name in ("weights", "optimizer"):
        path = folder / f"{name}.safetensors"
        check_tensors(path.read_bytes(), path)


def check_generation(folder: Path) -> None:
    """Its manifest's files, but for the large parts that retention takes as a whole."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, size in manifest["content"]["files"].items():
        part = name.split("/")[0]
        if part in LARGE and not (folder / part).exists():
            continue
        require((folder / name).exists(), f"{folder / name} is missing")
        require((folder / name).stat().st_size == size, f"{folder / name}: not {size} bytes")


def check_ledger(run: Path) -> None:
    """No step is missing or done twice, and each line's generation is the ledger's."""
    lines = ledger(run / "metrics.jsonl")
    switches = {record["step"]: record["generation"] for record in ledger(run / "switches.jsonl")}
    steps = [line["step"] for line in lines]
    require(steps == list(range(1, len(steps) + 1)), f"metrics.jsonl: steps {steps}")
    require(list(switches) == sorted(switches), f"switches.jsonl: {switches}")
    for number in switches.values():
        folder = run / "generations" / f"{number:04d}"
        require((folder / "manifest.json").exists(), f"the ledger names {folder}, it is not whole")
    for line in lines:
        began = max((step for step in switches if step < line["step"]), default=None)
        require(
            began is not None and switches[began] == line["generation"],
            f"step {line['step']}: generation {line['generation']}, the ledger says {switches}",
        )


def check_finished(run: Path, last_step: int, every: int) -> None:
    """A finished loop: all steps, all checkpoints, the last generation from the last checkpoint."""
    lines = ledger(run / "metrics.jsonl")
    require(len(lines) == last_step, f"{len(lines)} steps of {last_step}")
    wanted = [f"step-{step:08d}" for step in range(0, last_step + 1, every)]
    found = [path.name for path in steps_in(run / "checkpoints")]
    require(found == wanted, f"checkpoints {found}, expected {wanted}")
    pointer = json.loads((run / "negatives.json").read_text())
    require(pointer["checkpoint_step"] == last_step, f"{pointer}")
    require((run / "latest").resolve().name == wanted[-1], "latest is not the last")
    begun = [record for record in ledger(run / "segments.jsonl") if "segment" in record]
    done = [record["finished"] for record in ledger(run / "segments.jsonl") if "finished" in record]
    require(done == [record["segment"] for record in begun], f"segments {begun}, finished {done}")
    litter = [path for path in run.rglob(".*") if path.suffix in (".partial", ".removed", ".lease")]
    require(not litter, f"left behind: {[str(path.relative_to(run)) for path in litter]}")
    for lease in (run / "lease").iterdir():  # a killed process leaves its own, without a lock
        with open(lease) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def what_it_left(run: Path) -> dict:
    """What a finished loop leaves, without times."""
    generations = {}
    for folder in sorted((run / "generations").glob("[0-9]*")):
        manifest = json.loads((folder / "manifest.json").read_text())
        vectors = folder / "embeddings" / "embeddings.npy"
        generations[folder.name] = {
            "fingerprint": manifest["fingerprint"],
            "step": manifest["stats"]["checkpoint_step"],
            "dev": manifest["stats"]["dev"],
            "negatives": (folder / "negatives.jsonl").read_bytes(),
            "embeddings": vectors.read_bytes() if vectors.exists() else None,
        }
    lines = ledger(run / "metrics.jsonl")
    return {
        "generations": generations,
        "losses": [(line["step"], line["loss"], line["generation"]) for line in lines],
        "checkpoints": {path.name: tree(path) for path in steps_in(run / "checkpoints")},
        "switches": ledger(run / "switches.jsonl"),
    }


def replayed(run: Path, scratch: Path, last_step: int, every: int, flags: list[str]) -> None:
    """Train a finished asynchronous run again, undisturbed, with the switches of its ledger: the
    losses and the checkpoints have to be the same."""
    shutil.rmtree(scratch, ignore_errors=True)
    keep = ("run.json", "switches.jsonl", "generations")
    scratch.mkdir()
    for name in keep:
        copy = shutil.copytree if (run / name).is_dir() else shutil.copy
        copy(run / name, scratch / name)
    shutil.copytree(run / "checkpoints" / "step-00000000", scratch / "checkpoints/step-00000000")
    begun = (run / "segments.jsonl").read_text().splitlines(keepends=True)[0]
    (scratch / "segments.jsonl").write_text(begun)  # interrupted before its first step
    last = ledger(run / "switches.jsonl")[-1]["generation"]
    stats = json.loads((run / f"generations/{last:04d}/manifest.json").read_text())["stats"]
    pointer = {"generation": last, "checkpoint_step": stats["checkpoint_step"]}
    (scratch / "negatives.json").write_text(
        json.dumps({**pointer, "path": f"generations/{last:04d}"})
    )
    subprocess.run(
        [sys.executable, "-m", "ance_cli", "train-segment", "--follow", "--steps", str(last_step),
         "--checkpoint-every", str(every), "--log-every", "1", "--gpus", "none", "--quiet", *flags,
         "-o", str(scratch)],
        cwd=run.parent, check=True, capture_output=True,
    )  # fmt: skip
    found, wanted = what_it_left(scratch), what_it_left(run)
    for part in ("losses", "checkpoints", "switches"):
        require(found[part] == wanted[part], f"{part} are not those of an undisturbed replay")
