"""The names inside a run folder, and who is newest there.

The layout is in `docs/formats.md`. Steps are read from what lies inside a folder, never from its
name; the one thing that a trainer polls is the pointer `negatives.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.lease import hold
from ance_cli.formats.manifest import AUTO
from ance_cli.formats.merged import read_shares

RUN = "run.json"
REFRESH = "refresh.json"
LOOP = "loop.json"
POINTER = "negatives.json"
NEGATIVES = "negatives.jsonl"
"""The negatives inside a generation's folder."""

_NEEDED = {RUN: {"identity", "data"}}
_BRING_BACK = "bring the file back; ance writes it whole, so something else changed it"
_REPOINT = "remove it: the next ance refresh writes it anew"

_CHECKPOINT_FACTS = "ance.json"
_STATE_FACTS = "state.json"
_PARTS = {"lease", "inputs", "checkpoints", "state", "generations", "latest", ".latest.partial",
          ".run.json.partial"}  # fmt: skip
"""What a run folder can hold before `run.json` is written."""


class RunFolder:
    """Paths and ledgers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.states = path / "state"
        self.generations = path / "generations"
        self.inputs = path / "inputs"
        self.latest = path / "latest"
        self.best = path / "best"
        self.metrics = path / "metrics.jsonl"
        self.segments = path / "segments.jsonl"
        self.switches = path / "switches.jsonl"
        self.train_job = path / "orders.json"

    def lease(self, role: str) -> Path:
        """The lease file of `supervisor`, `trainer` or `inferencer`."""
        return self.path / "lease" / role

    # ---------------------------------------------------------------- settings written once

    @property
    def exists(self) -> bool:
        """Whether the run was made: `run.json` is written last."""
        return (self.path / RUN).exists()

    @contextmanager
    def held(self, role: str) -> Iterator[None]:
        """Hold the run's lease for a role that may make the run.

        Where the block fails before the run exists, nothing is left under its name. Refuses a
        folder that holds something else than a run.
        """
        if not self.exists and self.path.exists():
            names = {path.name for path in self.path.iterdir()}
            found = {name for name in names if not name.endswith(".removed")}  # left by a kill
            strangers = found - _PARTS
            if not strangers and "lease" not in found:  # every run that began has it
                strangers = found
            if strangers:
                raise Mismatch(
                    f"{self.path}: exists and is not a run folder (it holds {min(strangers)})",
                    hint="choose another name with -o",
                )
        try:
            with hold(self.lease(role), f"the run {self.path}"):
                atomic.sweep(self.path, "removed")
                try:
                    yield
                except BaseException:
                    if not self.exists:
                        for name in _PARTS - {"lease"}:
                            atomic.remove(self.path / name)
                    raise
        finally:
            if not self.exists:  # the folders go unless somebody else's lease lies there
                for folder in (self.path / "lease", self.path):
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()

    def read(self, name: str = RUN) -> dict[str, Any]:
        """`run.json` or `refresh.json`."""
        path = self.path / name
        try:
            found = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            raise BadInput(
                f"{path}: no such file: {self.path} is not a run folder",
                hint="start a run with: ance loop --data DATASET --ckpt CHECKPOINT -o RUN",
            ) from None
        except orjson.JSONDecodeError as error:
            raise BadInput(f"{path}: not valid JSON ({error})", hint=_BRING_BACK) from error
        wanted = _NEEDED.get(name, set())
        if not isinstance(found, dict) or not wanted <= found.keys():
            raise BadInput(
                f"{path}: expected a JSON object with {', '.join(sorted(wanted)) or 'settings'}",
                hint=_BRING_BACK,
            )
        return found

    def dataset(self) -> Dataset:
        """The run's dataset; `Mismatch` where its files are not those that the run began with."""
        facts = self.read()
        paths = {part: Path(facts["data"][part]) for part in ("corpus", "queries", "qrels")}
        dataset = Dataset(**paths, split=facts["data"]["split"])
        found = (dataset.fingerprint(*paths), read_shares(dataset))
        if found != (facts["identity"]["dataset"], facts["identity"].get("shares")):
            raise Mismatch(
                f"{self.path}: its data has changed since the run began: "
                f"{', '.join(map(str, paths.values()))}",
                hint="bring the old files back, or start another run: "
                f"--data DATASET --ckpt {self.latest} -o RUN2",
            )
        return dataset

    def write_once(self, name: str, value: dict[str, Any]) -> None:
        """Write `run.json` or `refresh.json`."""
        atomic.write_bytes(self.path / name, orjson.dumps(value, option=orjson.OPT_INDENT_2))

    # ---------------------------------------------------------------- checkpoints and states

    def checkpoint_at(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def state_at(self, step: int) -> Path:
        return self.states / f"step-{step:08d}"

    def newest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole checkpoint."""
        return _newest(self.checkpoints, _CHECKPOINT_FACTS, "training_step")

    def newest_state(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole resume state."""
        return _newest(self.states, _STATE_FACTS, "step")

    def prune_states(self, keep: int = 2) -> None:
        """Remove all but the newest states."""
        for _, path in _all_steps(self.states, _STATE_FACTS, "step")[:-keep]:
            atomic.remove(path)

    # ---------------------------------------------------------------- generations

    def published(self) -> dict[str, Any] | None:
        """The pointer: {generation, checkpoint_step, path}, or None before the first one."""
        try:
            found = orjson.loads((self.path / POINTER).read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise BadInput(
                f"{self.path / POINTER}: not valid JSON ({error})", hint=_REPOINT
            ) from error
        if (
            not isinstance(found, dict)
            or not {"generation", "checkpoint_step", "path"} <= found.keys()
        ):
            raise BadInput(
                f"{self.path / POINTER}: expected generation, checkpoint_step and path",
                hint=_REPOINT,
            )
        return found

    def unfinished_segment(self) -> dict[str, Any] | None:
        """The record of the last segment in `segments.jsonl` if it was not finished."""
        records = read_ledger(self.segments)
        finished = {record["finished"] for record in records if "finished" in record}
        begun = [record for record in records if "segment" in record]
        return begun[-1] if begun and begun[-1]["segment"] not in finished else None

    def publish(self, generation: int, checkpoint_step: int, folder: Path) -> None:
        """Point the trainer to a whole generation."""
        value = {
            "generation": generation,
            "checkpoint_step": checkpoint_step,
            "path": folder.relative_to(self.path).as_posix(),
        }
        atomic.write_bytes(self.path / POINTER, orjson.dumps(value))

    def generation_at(self, number: int) -> Path:
        return self.generations / f"{number:04d}"

    def generation_of(self, negatives: Path) -> int | None:
        """The number of the generation that a negatives file belongs to; None if to none here."""
        folder = negatives.parent.resolve()
        if folder.parent != self.generations.resolve() or not folder.name.isdecimal():
            return None
        return int(folder.name)

    # ---------------------------------------------------------------- ledgers

    def last_logged_step(self) -> int:
        """The step of the last line of the training log, 0 before the first."""
        return max((int(record["step"]) for record in read_ledger(self.metrics)), default=0)

    def note_switch(self, step: int, generation: int | None) -> None:
        """Note, durably, that the batch of `step` is the first of a generation; None is not one."""
        switch = {"step": step, "generation": generation}
        earlier = [record for record in read_ledger(self.switches) if record["step"] <= step]
        if generation is not None and (not earlier or earlier[-1]["generation"] != generation):
            atomic.append_line(self.switches, orjson.dumps(switch))

    def event(self, who: str, what: str, **facts: Any) -> None:
        """Append to `events.jsonl`: who did what when."""
        record = {"time": now(), "who": who, "what": what, **facts}
        atomic.append_line(self.path / "events.jsonl", orjson.dumps(record))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The records of an append-only file; a last line that a kill cut short is not one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = orjson.loads(line or b"{}")
        except orjson.JSONDecodeError as error:
            raise BadInput(
                f"{path}:{number}: not valid JSON ({error})", hint=_BRING_BACK
            ) from error
        if not isinstance(record, dict):
            raise BadInput(f"{path}:{number}: expected a JSON object", hint=_BRING_BACK)
        if record:
            records.append(record)
    return records


def cut_ledger(path: Path, last_step: int) -> None:
    """Keep the records up to `last_step`."""
    if path.exists():
        kept = [record for record in read_ledger(path) if record["step"] <= last_step]
        atomic.write_bytes(path, b"".join(orjson.dumps(record) + b"\n" for record in kept))


def compare_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any], hint: str) -> None:
    """Raise `Mismatch` naming the keys in which `wanted` differs; `auto` agrees with anything."""
    differing = [
        f"{name} {found.get(name)!r} -> {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value and value != AUTO
    ]
    if differing:
        raise Mismatch(f"{path}: was made with other settings: {'; '.join(differing)}", hint=hint)


def _all_steps(folder: Path, facts: str, key: str) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("[!.]*"):
        try:
            found.append((int(orjson.loads((path / facts).read_bytes())[key]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not whole: nothing that was published lacks its facts
    return sorted(found)


def _newest(folder: Path, facts: str, key: str) -> tuple[int, Path] | None:
    steps = _all_steps(folder, facts, key)
    return steps[-1] if steps else None
