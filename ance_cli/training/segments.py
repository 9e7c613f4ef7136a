"""The ledger of a run's segments: which stretch of training is done, unfinished, or new."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.config import TrainConfig
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.ledgers import Segment, SegmentLedger, cut_ledger
from ance_cli.formats.manifest import manifest_name
from ance_cli.formats.run_folder import RunFolder, now


@dataclass(frozen=True)
class SegmentInput:
    """Where a segment's negatives come from: a file, the run's generations as they come or the
    batch alone (no path), or the vectors of a frozen passage tower."""

    path: Path | None
    fingerprint: str
    checkpoint_step: int | None
    generation: int | None

    @classmethod
    def of(cls, run: RunFolder, record: Segment) -> SegmentInput:
        """What `new_segment` left in a segment's record."""
        path = run.path / record.negatives if record.negatives else None
        return cls(path, record.input, record.checkpoint_step, record.generation)

    def facts(self, run: RunFolder) -> dict[str, Any]:
        """What a segment's record says of it; a path inside the run moves along with the run."""
        path = self.path.resolve() if self.path else None
        if path and path.is_relative_to(run.path.resolve()):
            path = path.relative_to(run.path.resolve())
        return {
            "input": self.fingerprint,
            "negatives": path.as_posix() if path else None,
            "generation": self.generation,
            "checkpoint_step": self.checkpoint_step,
        }


def segment_input(run: RunFolder, path: Path) -> SegmentInput:
    """What the negatives' manifest says, where there is one and it is about this very file."""
    content = hash_file(path)
    generation = run.generation_of(path)
    try:
        manifest = orjson.loads(manifest_name(path, "negatives").read_bytes())
        if manifest["content"]["xxh3"] == content:
            step = int(manifest["stats"]["checkpoint_step"])
            return SegmentInput(path, manifest["fingerprint"], step, generation)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a file from a pipe or an editor: known by its content
    if generation is not None:
        raise BadInput(
            f"{path}: is not what its manifest says: it was changed since it was made",
            hint=f"ance refresh {run.path} --force makes another generation",
        )
    return SegmentInput(path, content, 0, generation)


def find_segment(
    run: RunFolder, source: SegmentInput, steps: int, force: bool
) -> tuple[Segment | None, bool]:
    """The record of this very segment in `segments.jsonl` and whether it is done; None if new.

    Raises `Mismatch` where another segment is unfinished; `force` abandons that one, and begins a
    new one where this very segment was finished before.
    """
    ledger = SegmentLedger.read(run.segments)
    for record in ledger.begun:
        same = record.input == source.fingerprint and record.steps == steps
        if same and record.segment in ledger.finished and not force:
            return record, True
    last = ledger.unfinished
    if last is None or force:
        return None, False
    if last.input == source.fingerprint and last.steps == steps:
        return last, False
    raise Mismatch(
        f"{run.path}: a segment of {last.steps} steps on {last.negatives} is unfinished "
        f"(it began at step {last.start_step})",
        hint="repeat its command to finish it, or begin this one from the newest state with "
        "--force",
    )


def state_step(run: RunFolder) -> int:
    """The step of the newest resume state.

    Raises `Mismatch` where a checkpoint is newer: training on from an older state, or from the
    checkpoint without its optimizer, would quietly be another run.
    """
    state, newest = run.newest_state(), run.newest_checkpoint()
    step = state[0] if state else 0
    if newest and newest[0] > step:
        raise Mismatch(
            f"{run.states}: the resume state of step {newest[0]} is missing, the newest is of "
            f"step {step}",
            hint=f"bring it back, or start another run from --ckpt {run.latest}",
        )
    return step


def check_room(run: RunFolder, steps: int, config: TrainConfig) -> None:
    """Refuse steps beyond the schedule's horizon, where the learning rate is 0."""
    start = state_step(run)
    if config.schedule != "constant" and start + steps > config.total_steps:
        raise Mismatch(
            f"{run.path}: steps {start + 1} to {start + steps} go beyond the schedule's horizon "
            f"of {config.total_steps} steps, where the learning rate is 0",
            hint=f"start another run: --ckpt {run.latest} -o RUN2, or plan ahead with "
            "--total-steps in the first call",
        )


def new_segment(run: RunFolder, source: SegmentInput, steps: int) -> Segment:
    """Append a segment that begins at the newest state to `segments.jsonl`.

    What an abandoned segment noted beyond that state goes: nobody may repeat its switches.
    """
    begun = SegmentLedger.read(run.segments).begun
    cut_ledger(run.switches, state_step(run))
    record = Segment(
        segment=len(begun) + 1,
        start_step=state_step(run),
        steps=steps,
        **source.facts(run),
        started=now(),
    )
    atomic.append_line(run.segments, orjson.dumps(asdict(record)))
    return record
