"""The names inside a run folder, and which checkpoint, state and generation is the newest.

The layout is in `docs/reference/files.md`. Steps are read from the files in a folder, never from
its name; a trainer polls the pointer `negatives.json` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson

from ance_cli.config import RefreshConfig, TrainConfig
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.checkpoint_folder import CheckpointFolder
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.hashing import hash_json
from ance_cli.formats.lease import hold
from ance_cli.formats.ledgers import Segment, SegmentLedger, Switch, last_step, read_ledger_as
from ance_cli.formats.merged import read_shares
from ance_cli.formats.plan import AUTO
from ance_cli.formats.records import HASH, check_hash, check_record, read_record
from ance_cli.formats.state_folder import StateFolder

T = TypeVar("T")

RUN = "run.json"
REFRESH = "refresh.json"
LOOP = "loop.json"
POINTER = "negatives.json"

SUPERVISOR, TRAINER, REFRESHER = "supervisor", "trainer", "inferencer"
"""The roles in a run, as lease files and `events.jsonl` name them. The files keep the first name
of the role that refreshes, so that runs of every version can be read."""

_RESTORE = "restore the file: ance writes it whole, so something else changed it"
_REFIX = "restore the file, or remove it: the next ance refresh fixes the settings that it gets"
_REPOINT = "remove the file: the next ance refresh writes it again"

_PARTS = {"lease", "inputs", "checkpoints", "state", "generations", "latest", ".latest.partial",
          ".run.json.partial"}  # fmt: skip
"""What a run folder can contain before `run.json` is written."""
_FIRST_STEP = "step-00000000"
"""The only artifact that the folders among these can contain then."""


@dataclass(frozen=True)
class DataPaths:
    """The files of a run's dataset, and the split of the labels."""

    corpus: str
    queries: str
    qrels: str
    split: str | None = None


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`.

    Every call of a run must have the same `identity`: the content of the dataset and of the start
    checkpoint, and the fields of `TrainConfig`.
    """

    identity: dict[str, Any]
    data: DataPaths
    start_checkpoint: str = "unknown"
    fresh_head: bool = False
    created: str = ""
    tool_version: str = ""
    identity_xxh3: str = ""


@dataclass(frozen=True)
class Pointer:
    """The content of `negatives.json`: the published generation. `path` is relative to the run."""

    generation: int
    checkpoint_step: int
    path: str


@dataclass(frozen=True)
class _CheckpointStep:
    training_step: int


@dataclass(frozen=True)
class _StateStep:
    step: int


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
        self.events = path / "events.jsonl"
        self.train_job = path / "orders.json"

    def lease(self, role: str) -> Path:
        """The lease file of `SUPERVISOR`, `TRAINER` or `REFRESHER`."""
        return self.path / "lease" / role

    # ---------------------------------------------------------------- settings

    @property
    def exists(self) -> bool:
        """Whether the run has been created: `run.json` is written last."""
        return (self.path / RUN).exists()

    @contextmanager
    def held(self, role: str) -> Iterator[None]:
        """Hold the run's lease for a role that can create the run.

        If the block fails before the run exists, nothing remains under its name; a run of which
        `run.json` is missing for a moment stays. Raises `Mismatch` for a folder that is not a run.
        """
        self.check_is_run()
        try:
            with hold(self.lease(role), f"the run {self.path}"):
                self.check_is_run()  # again, now that nobody else can create the run
                atomic.sweep(self.path, "removed")
                try:
                    yield
                except BaseException:
                    if not self.exists and not self._foreign_parts():
                        for name in _PARTS - {"lease"}:
                            atomic.remove(self.path / name)
                    raise
        finally:
            if not self.exists:  # remove the folders unless they hold another process's lease
                for folder in (self.path / "lease", self.path):
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()

    def check_is_run(self) -> None:
        """Raise `Mismatch` if the folder exists and is not a run, nor the beginning of one."""
        if self.exists or not self.path.exists():
            return
        others = self._foreign_parts()
        if self.events.name in others or self.segments.name in others:
            raise Mismatch(
                f"{self.path / RUN}: no such file, but {self.path} contains the records of a run",
                hint=f"restore {RUN}, or choose another name with -o",
            )
        if others:
            raise Mismatch(
                f"{self.path}: exists and is not a run folder (it contains {min(others)})",
                hint="choose another name with -o",
            )

    def _foreign_parts(self) -> set[str]:
        """The names in the folder that a run has not before `run.json` is written."""
        names = {path.name for path in self.path.iterdir()}
        found = {name for name in names if not name.endswith(".removed")}  # left by a kill
        if "lease" not in found:  # every run that was started has a lease folder
            return found - _PARTS or found
        return (found - _PARTS) | {
            f"{folder.name}/{path.name}"
            for folder in (self.checkpoints, self.states, self.generations)
            if folder.is_dir()
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name != _FIRST_STEP
        }

    def read(self) -> RunRecord:
        """Read `run.json`; `BadInput` if a part is missing or of another type."""
        path = self.path / RUN
        found = self._read(RUN, RunRecord)
        check_record(found.identity, TrainConfig, f"{path}: identity", _RESTORE)
        if found.identity_xxh3 not in ("", hash_json(found.identity)):
            raise BadInput(
                f"{path}: 'identity' was changed after ance wrote it: it differs from its hash in "
                "'identity_xxh3'",
                hint="restore the file; for other settings start another run: "
                f"--ckpt {self.latest} -o RUN2",
            )
        return found

    @property
    def is_whole(self) -> bool:
        """Whether `run.json` and the pointer can be read. Only then may artifacts be removed."""
        try:
            self.read()
            self.published()
        except BadInput:
            return False
        return True

    def refresh_settings(self) -> dict[str, Any]:
        """The settings in `refresh.json`.

        Raises `BadInput` if there is no such file, or if a setting has another type than in
        `RefreshConfig`.
        """
        found = self._read(REFRESH, dict[str, Any])
        check_hash(self.path / REFRESH, found, _REFIX)
        found.pop(HASH, None)
        check_record(found, RefreshConfig, str(self.path / REFRESH), _RESTORE)
        return found

    @property
    def has_refresh_settings(self) -> bool:
        return (self.path / REFRESH).exists()

    def _read(self, name: str, kind: type[T]) -> T:
        path = self.path / name
        try:
            return read_record(path, kind, _RESTORE)
        except FileNotFoundError:
            raise BadInput(
                f"{path}: no such file: {self.path} is not a run folder",
                hint="start a run with: ance loop --data DATASET --ckpt CHECKPOINT -o RUN",
            ) from None

    def dataset(self) -> Dataset:
        """The run's dataset; `Mismatch` if its files have changed since the run began."""
        facts = self.read()
        paths = {
            "corpus": Path(facts.data.corpus),
            "queries": Path(facts.data.queries),
            "qrels": Path(facts.data.qrels),
        }
        dataset = Dataset(**paths, split=facts.data.split)
        found = (dataset.fingerprint(*paths), read_shares(dataset))
        if found != (facts.identity["dataset"], facts.identity.get("shares")):
            raise Mismatch(
                f"{self.path}: its data has changed since the run began: "
                f"{', '.join(map(str, paths.values()))}",
                hint="restore the files, or start another run: "
                f"--data DATASET --ckpt {self.latest} -o RUN2",
            )
        return dataset

    def write_settings(self, name: str, value: dict[str, Any]) -> None:
        """Write `run.json`, `refresh.json` or `loop.json`, replacing an earlier one."""
        atomic.write_bytes(self.path / name, orjson.dumps(value, option=orjson.OPT_INDENT_2))

    # ---------------------------------------------------------------- checkpoints and states

    def checkpoint(self, step: int) -> CheckpointFolder:
        """The checkpoint of a step, which need not exist."""
        return CheckpointFolder(self.checkpoints / f"step-{step:08d}")

    def state(self, step: int) -> StateFolder:
        """The resume state of a step, which need not exist."""
        return StateFolder(self.states / f"step-{step:08d}")

    def newest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest complete checkpoint."""
        return max(_all_checkpoints(self.checkpoints), default=None)

    def checked_checkpoint(self) -> tuple[int, Path] | None:
        """The newest checkpoint; `BadInput` if a later one is damaged, so that no command takes an
        older one without saying so."""
        found = self.newest_checkpoint()
        for path in _named_after(self.checkpoints, found):
            _check_step(CheckpointFolder(path).settings, _CheckpointStep, "checkpoint")
        return found

    def newest_state(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest complete resume state."""
        return max(_all_states(self.states), default=None)

    def checked_state(self) -> tuple[int, Path] | None:
        """The newest state; `BadInput` if a later one is damaged."""
        found = self.newest_state()
        for path in _named_after(self.states, found):
            _check_step(StateFolder(path).progress, _StateStep, "state")
        return found

    def prune_states(self, keep: int = 2) -> None:
        """Remove all but the newest states; none while `run.json` is missing or damaged."""
        if self.is_whole:
            for _, path in sorted(_all_states(self.states))[: -max(1, keep)]:
                atomic.remove(path)

    # ---------------------------------------------------------------- generations

    def generation(self, number: int) -> GenerationFolder:
        """The generation of a number, which need not exist."""
        return GenerationFolder(self.generations / f"{number:04d}")

    def all_generations(self) -> list[GenerationFolder]:
        """The complete generations, oldest first."""
        paths = self.generations.glob("[0-9]*")
        found = [GenerationFolder(path) for path in paths if path.name.isdecimal()]
        numbered = [each for each in found if each == self.generation(each.number)]
        return sorted(numbered, key=lambda generation: generation.number)

    def published(self) -> Pointer | None:
        """The pointer to the published generation; None before the first one.

        Raises `BadInput` if the file was changed after it was written.
        """
        try:
            pointer = read_record(self.path / POINTER, Pointer, _REPOINT)
        except FileNotFoundError:
            return None
        named = self.generation(pointer.generation)
        if pointer.generation < 1 or self.published_folder(pointer) != named:
            raise BadInput(
                f"{self.path / POINTER}: names generation {pointer.generation} in "
                f"{pointer.path!r}, where that generation is not",
                hint=_REPOINT,
            )
        return pointer

    def newest_whole_generation(self, after: int) -> Pointer | None:
        """A pointer to the newest generation after the number `after` whose manifest and negatives
        are as they were made; None if there is none."""
        for generation in reversed(self.all_generations()):
            if generation.number <= after:
                break
            if (step := generation.whole_step()) is not None:
                path = generation.path.relative_to(self.path).as_posix()
                return Pointer(generation.number, step, path)
        return None

    def published_folder(self, pointer: Pointer) -> GenerationFolder:
        """The generation that the pointer names."""
        return GenerationFolder(self.path / pointer.path)

    def publish(self, generation: int, checkpoint_step: int, folder: Path) -> None:
        """Point the trainer to a complete generation."""
        pointer = Pointer(generation, checkpoint_step, folder.relative_to(self.path).as_posix())
        atomic.write_bytes(self.path / POINTER, orjson.dumps(asdict(pointer)))

    def generation_of(self, negatives: Path) -> int | None:
        """The number of the run's generation that has this negatives file; None if none has it."""
        folder = negatives.parent.resolve()
        if folder.parent != self.generations.resolve() or not folder.name.isdecimal():
            return None
        return int(folder.name)

    # ---------------------------------------------------------------- ledgers

    def unfinished_segment(self) -> Segment | None:
        """The last segment in `segments.jsonl`, unless it ended."""
        return SegmentLedger.read(self.segments).unfinished

    def last_logged_step(self) -> int:
        """The step of the last line of the training log; 0 if the log is empty."""
        return last_step(self.metrics)

    def note_switch(self, step: int, generation: int | None) -> None:
        """Record durably that the batch of `step` is the first one on a generation (None: skip)."""
        earlier = [each for each in read_ledger_as(self.switches, Switch) if each.step <= step]
        if generation is not None and (not earlier or earlier[-1].generation != generation):
            atomic.append_line(self.switches, orjson.dumps(asdict(Switch(step, generation))))

    def event(self, who: str, what: str, **facts: Any) -> None:
        """Append to `events.jsonl`: who did what when."""
        record = {"time": now(), "who": who, "what": what, **facts}
        atomic.append_line(self.events, orjson.dumps(record))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


_BY_HASH = {
    "start": "it began from a checkpoint (--ckpt) with other weights or prompts",
    "dataset": "it has other data (--data, --split)",
}
"""What to say of a setting that is a hash, which tells a reader nothing."""


def compare_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any], hint: str) -> None:
    """Raise `Mismatch` that names the keys in which `wanted` differs; `auto` equals any value."""
    differing = [
        _BY_HASH.get(name) or f"{name} {found.get(name)!r} -> {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value and value != AUTO
    ]
    if differing:
        raise Mismatch(f"{path}: was made with other settings: {'; '.join(differing)}", hint=hint)


_INCOMPLETE = (FileNotFoundError, NotADirectoryError, BadInput)
"""Errors of a folder that is no whole checkpoint or state. After any other one, such as a failing
disk, the newest is not known, and an older one must not be taken for it."""


def _all_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each complete checkpoint."""
    found = []
    for path in folder.glob("[!.]*"):
        with suppress(*_INCOMPLETE):  # a published checkpoint has its step
            facts = read_record(CheckpointFolder(path).settings, _CheckpointStep)
            found.append((facts.training_step, path))
    return found


def _named_after(folder: Path, newest: tuple[int, Path] | None) -> Iterator[Path]:
    """The folders whose name has a later step than the newest that could be read."""
    for path in sorted(folder.glob("step-*")):
        step = path.name.removeprefix("step-")
        if step.isdecimal() and path.is_dir() and int(step) > (newest[0] if newest else -1):
            yield path


def _check_step(path: Path, kind: type[Any], what: str) -> None:
    """Raise `BadInput` if the file with the step of a checkpoint or state is damaged."""
    hint = f"restore {path.parent}, or remove it to continue from the {what} before it"
    try:
        read_record(path, kind, hint)
        check_hash(path, read_record(path, dict[str, Any]), hint)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"{path}: no such file; the {what} is incomplete", hint=hint) from None


def _all_states(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each complete resume state."""
    found = []
    for path in folder.glob("[!.]*"):
        with suppress(*_INCOMPLETE):
            found.append((read_record(StateFolder(path).progress, _StateStep).step, path))
    return found
