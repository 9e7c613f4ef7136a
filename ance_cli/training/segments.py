"""The negatives of a segment, and the ledger of a run's segments: which ones are done, unfinished
or new."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.config import TrainConfig
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, open_input
from ance_cli.formats.ledgers import FOLLOW, Segment, SegmentLedger, cut_ledger
from ance_cli.formats.manifest import manifest_name
from ance_cli.formats.run_folder import RunFolder, now
from ance_cli.retrieval.dense import VectorSource
from ance_cli.training.lr_schedule import ends


@dataclass(frozen=True)
class NegativesSource:
    """Where a call takes the negatives of its segment from.

    A negatives file (`file`, - for stdin), the generations of the run as they are published
    (`follow`), or live retrieval from the `embeddings` of a frozen passage tower. If nothing is
    set, negatives come from the batch alone.
    """

    file: Path | None = None
    follow: bool = False
    embeddings: Path | None = None

    def check(self, config: TrainConfig) -> None:
        """Raise `UsageProblem` or `BadInput` if a run of this recipe cannot train on the source."""
        if self.follow and (self.file is not None or config.freeze_passages):
            raise UsageProblem(
                "--follow trains on the run's own generations: it cannot be combined with a "
                "negatives file or with --freeze-passages",
                hint="use either --follow or the other one",
            )
        if config.freeze_passages and self.embeddings is None:
            raise UsageProblem(
                "--freeze-passages needs --embeddings, the vectors of the frozen passages",
                hint="ance encode --ckpt CHECKPOINT --data DATASET -o emb, then --embeddings emb",
            )
        if self.embeddings is not None and not config.freeze_passages:
            raise UsageProblem(
                "--embeddings needs --freeze-passages: without it the passage encoder is trained, "
                "and its vectors change",
                hint="omit --embeddings, or add --freeze-passages",
            )
        if config.freeze_passages and self.file is not None:
            raise UsageProblem(
                f"--freeze-passages retrieves its own negatives: it cannot be combined with the "
                f"negatives file {self.file}",
                hint="omit the file",
            )
        if self.file is None and config.needs_negatives and not self.follow:
            raise UsageProblem(
                "name the negatives to train on, or - for stdin",
                hint="or take them from the batch: --in-batch all --negatives-per-positive 0",
            )
        if self.file is not None and self.file != STDIO and not self.file.exists():
            raise BadInput(
                f"{self.file}: no such file",
                hint="make a negatives file with ance bm25-negatives or ance mine",
            )

    def read(self, run: RunFolder, config: TrainConfig) -> SegmentInput:
        """The input of the segment, with its fingerprint; stdin is copied into the run folder."""
        if self.follow:
            return SegmentInput(None, FOLLOW, None, None)
        if config.freeze_passages:
            assert self.embeddings is not None
            vectors = VectorSource(self.embeddings, "embeddings")
            return SegmentInput(self.embeddings, vectors.fingerprint, None, None)
        if self.file is None:
            return SegmentInput(None, f"batch/{config.in_batch}", None, None)
        return segment_input(run, _copy_of_stdin(run) if self.file == STDIO else self.file)


def _copy_of_stdin(run: RunFolder) -> Path:
    """A file of the run folder, named by its content."""
    spool = run.inputs / "stdin.jsonl"
    with open_input(STDIO) as stdin, atomic.new_file(spool) as handle:
        while chunk := stdin.read(1 << 20):
            handle.write(chunk)
    kept = run.inputs / f"{hash_file(spool)}.jsonl"
    spool.replace(kept)
    return kept


@dataclass(frozen=True)
class SegmentInput:
    """The negatives of a segment, and what identifies them.

    `path` is a negatives file, or the vectors of a frozen passage tower; None if negatives come
    from the run's generations as they are published, or from the batch alone.
    """

    path: Path | None
    fingerprint: str
    checkpoint_step: int | None
    generation: int | None

    @classmethod
    def of(cls, run: RunFolder, record: Segment) -> SegmentInput:
        """The input that `new_segment` recorded."""
        path = run.path / record.negatives if record.negatives else None
        return cls(path, record.input, record.checkpoint_step, record.generation)

    def facts(self, run: RunFolder) -> dict[str, Any]:
        """The fields of the segment's record; a path inside the run is relative to the run, so the
        run folder can be moved."""
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
    """A negatives file as an input: by its manifest, or by its content if no manifest fits.

    Raises `BadInput` if the file belongs to a generation and differs from its manifest.
    """
    content = hash_file(path)
    generation = run.generation_of(path)
    try:
        manifest = orjson.loads(manifest_name(path, "negatives").read_bytes())
        if manifest["content"]["xxh3"] == content:
            step = int(manifest["stats"]["checkpoint_step"])
            return SegmentInput(path, manifest["fingerprint"], step, generation)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # a file from a pipe or an editor has no manifest
    if generation is not None:
        raise BadInput(
            f"{path}: differs from its manifest: the file was changed after it was made",
            hint=f"make another generation with: ance refresh {run.path} --force",
        )
    return SegmentInput(path, content, 0, generation)


def find_segment(
    run: RunFolder, source: SegmentInput, steps: int, force: bool
) -> tuple[Segment | None, bool]:
    """The record of the segment with this input and these steps, and whether it is done; None if
    the segment is new.

    Raises `Mismatch` if another segment is unfinished. With `force` an unfinished segment is
    abandoned, and a finished one is trained again as a new segment.
    """
    ledger = SegmentLedger.read(run.segments)
    for record in ledger.begun:
        is_same = record.input == source.fingerprint and record.steps == steps
        if is_same and record.segment in ledger.finished and not force:
            return record, True
    last = ledger.unfinished
    if last is None or force:
        return None, False
    if last.input == source.fingerprint and last.steps == steps:
        return last, False
    raise Mismatch(
        f"{run.path}: a segment of {last.steps} steps on {last.negatives} is unfinished "
        f"(it began at step {last.start_step})",
        hint="repeat its command to finish it, or use --force to start this one from the newest "
        "state",
    )


def state_step(run: RunFolder) -> int:
    """The step of the newest resume state; 0 if the run has none.

    Raises `Mismatch` if a checkpoint is newer: training from an older state, or from the checkpoint
    without its optimizer, would be another run without saying so.
    """
    state, newest = run.newest_state(), run.newest_checkpoint()
    step = state[0] if state else 0
    if newest and newest[0] > step:
        raise Mismatch(
            f"{run.states}: the resume state of step {newest[0]} is missing, the newest is of "
            f"step {step}",
            hint=f"restore the state, or start another run with --ckpt {run.latest}",
        )
    return step


def check_horizon(run: RunFolder, steps: int, config: TrainConfig) -> None:
    """Raise `Mismatch` if the segment ends after the step at which the learning rate reaches 0."""
    start = state_step(run)
    if ends(config) and start + steps > config.total_steps:
        raise Mismatch(
            f"{run.path}: steps {start + 1} to {start + steps} are beyond the --total-steps of the "
            f"run, {config.total_steps}: the learning rate is 0 there",
            hint=f"start another run with --ckpt {run.latest} -o RUN2, and set --total-steps in "
            "its first call",
        )


def new_segment(run: RunFolder, source: SegmentInput, steps: int) -> Segment:
    """Append a segment that begins at the newest state to `segments.jsonl`.

    Drops the switches that an abandoned segment logged after that state: no resumed segment may
    replay them.
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
