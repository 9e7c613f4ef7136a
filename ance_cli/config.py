"""Every default and every preset, once. Imports nothing heavy, so that `--help` can show them.

One frozen dataclass a stage. The field names are the flags' names; the docs of a flag stand in
`cli/options.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ance_cli.errors import UsageProblem

SEED = 42
MIN_REL = 1
MEASURES = "RR@10 nDCG@10 R@100"


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise UsageProblem(what)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_finite(config: Any) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        _check(
            not isinstance(value, float) or math.isfinite(value),
            f"{_flag(field.name)} {value}: expected a finite number",
        )


def _check_tag(tag: str) -> None:
    _check(tag.split() == [tag], "--tag is one word: it is a column of the run")


@dataclass(frozen=True)
class DrawConfig:
    """How negatives are drawn from ranked candidates. k1 and b are Anserini's defaults, a and b of
    SimANS those of its released code."""

    depth: int = 200
    negatives: int = 20
    mix: str = "ann"
    sampler: str = "uniform"
    sampler_temperature: float = 1.0
    simans_a: float = 0.5
    simans_b: float = 0.0
    range_min: int = 0
    range_max: int | None = None
    min_score: float | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    answers: bool = False
    teacher: str | None = None
    """Folder of a cross-encoder, as an absolute path."""
    teacher_max: float | None = None
    teacher_pairs: int = 0
    engine: str = "lucene"
    k1: float = 0.9
    b: float = 0.4
    seed: int = SEED
    min_rel: int = MIN_REL

    def __post_init__(self) -> None:
        _check_finite(self)
        if self.teacher is not None:  # so that it means the same from another folder
            object.__setattr__(self, "teacher", str(Path(self.teacher).absolute()))
        _check(self.depth > 0, "--depth must be at least 1")
        _check(self.negatives >= 0, "--negatives must not be negative")
        _check(self.sampler_temperature > 0, "--sampler-temperature must be greater than 0")
        _check(self.simans_a >= 0, "--simans-a must not be negative")
        _check(
            0 <= self.range_min < self.depth,
            f"--range-min {self.range_min} must be less than --depth {self.depth}",
        )
        _check(
            self.range_max is None or self.range_max > self.range_min,
            f"--range-max {self.range_max} must be greater than --range-min {self.range_min}",
        )
        _check(
            self.min_score is None or self.max_score is None or self.min_score <= self.max_score,
            "--min-score must not be greater than --max-score",
        )
        _check(self.k1 >= 0 and 0 <= self.b <= 1, "--k1 must not be negative, --b lies in 0..1")
        _check(self.teacher_pairs >= 0, "--teacher-pairs must not be negative")
        _check(
            self.teacher is not None or (self.teacher_max is None and not self.teacher_pairs),
            "--teacher-max and --teacher-pairs need --teacher",
        )
        if self.teacher_max is not None:
            _check(0 <= self.teacher_max <= 1, "--teacher-max is a probability: it lies in 0..1")
            _check(
                not self.teacher_pairs,
                "--teacher-max replaces negatives of every pair: it needs --teacher-pairs 0",
            )


@dataclass(frozen=True)
class Bm25Config(DrawConfig):
    """BM25 and the negatives drawn from it."""

    depth: int = 100
    mix: str = "bm25"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in (
            ("--sampler simans", self.sampler == "simans"),
            ("--absolute-margin", self.absolute_margin is not None),
            ("--relative-margin", self.relative_margin is not None),
        ):
            if given:
                raise UsageProblem(
                    f"{name} compares with the positive's score, which a BM25 ranking or a run "
                    "does not give",
                    hint="draw with a model: ance mine --mix bm25 --embeddings DIR",
                )


@dataclass(frozen=True)
class EncodeConfig:
    """Vectors of a corpus or of queries."""

    side: Literal["query", "passage"] = "passage"
    dtype: str = "auto"
    output_dtype: str = "float16"
    gpus: str = "all"
    cpu_workers: int = 1
    """Processes, where no GPU is used."""
    batch_tokens: int = 0
    """Padded tokens in a batch; 0 = 2,048 on a CPU, 24,576 on a GPU."""

    def __post_init__(self) -> None:
        _check(self.batch_tokens >= 0, "--batch-tokens must not be negative")
        _check(self.cpu_workers >= 1, "--cpu-workers must be at least 1")

    def tokens_for(self, device_type: str) -> int:
        return self.batch_tokens or (2_048 if device_type == "cpu" else 24_576)


@dataclass(frozen=True)
class IndexConfig:
    """A FAISS index over embeddings."""

    factory: str = "Flat"
    train_rows: int = 262_144
    seed: int = SEED
    probes: int | None = None
    recall_check: int = 0

    def __post_init__(self) -> None:
        _check(self.train_rows > 0, "--train-rows must be at least 1")
        _check(self.probes is None or self.probes > 0, "--probes must be at least 1")
        _check(self.recall_check >= 0, "--recall-check must not be negative")


@dataclass(frozen=True)
class MineConfig(DrawConfig):
    """ANN negatives. The paper draws one negative a positive, uniformly from the top 200; 20 are
    kept for each pair, as in its released scripts, for the trainer to draw from."""

    probes: int | None = None
    audit_bm25: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.probes is None or self.probes > 0, "--probes must be at least 1")


@dataclass(frozen=True)
class SearchConfig:
    """Retrieval to a run."""

    engine: str = "dense"
    depth: int = 100
    k1: float = 0.9
    b: float = 0.4
    probes: int | None = None
    tag: str = "ance"

    def __post_init__(self) -> None:
        _check(self.depth > 0, "--depth must be at least 1")
        _check(self.probes is None or self.probes > 0, "--probes must be at least 1")
        _check_tag(self.tag)


@dataclass(frozen=True)
class TrainConfig:
    """The identity of a training run: what a later segment must repeat (or leave out).

    `batch_size` is queries per device and micro-batch; an optimizer step sees
    `batch_size * devices * accumulation` pairs, also where a later call has fewer or more devices.
    `total_steps` is the horizon of the learning-rate schedule, 0 = what the first call runs.
    """

    optimizer: str = "adamw"
    lr: float = 2e-5
    schedule: str = "linear"
    warmup_steps: int = 0
    total_steps: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    batch_size: int = 32
    accumulation: int = 1
    devices: int = 1
    """Devices of the first call; no flag sets it."""
    negatives_per_positive: int = 1
    in_batch: str = "none"
    loss: str = "nll"
    margin: float = 1.0
    distill: str | None = None
    distill_weight: float = 0.5
    freeze_passages: bool = False
    live_depth: int = 200
    dropout: float | None = None
    """Dropout everywhere in the backbone; None = what the checkpoint's config says."""
    dtype: str = "auto"
    seed: int = SEED
    min_rel: int = MIN_REL
    towers: str | None = None
    """`two` splits a shared encoder; None = as the checkpoint is."""
    similarity: str | None = None
    # the start checkpoint's pins, overridden where not None
    query_length: int | None = None
    passage_length: int | None = None
    separator: str | None = None
    segmentation: str | None = None
    max_segments: int | None = None
    scale: float | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        _check_finite(self)
        for name, least in (
            ("batch_size", 1), ("accumulation", 1), ("live_depth", 1), ("dim", 1),
            ("max_segments", 1), ("query_length", 3), ("passage_length", 3),
        ):  # fmt: skip
            value = getattr(self, name)
            _check(value is None or value >= least, f"{_flag(name)} must be at least {least}")
        for name in ("lr", "max_grad_norm", "scale"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"{_flag(name)} must be greater than 0")
        for name in (
            "warmup_steps", "total_steps", "weight_decay", "negatives_per_positive", "margin",
        ):  # fmt: skip
            _check(getattr(self, name) >= 0, f"{_flag(name)} must not be negative")
        _check(
            self.negatives_per_positive > 0 or self.in_batch != "none",
            "--negatives-per-positive 0 leaves nothing to train against: add --in-batch",
        )
        _check(self.dropout is None or 0 <= self.dropout < 1, "--dropout lies in 0..1")
        _check(self.dtype != "fp16", "--dtype fp16: training runs in bf16 or fp32")
        _check(0 <= self.distill_weight <= 1, "--distill-weight lies in 0..1")
        _check(
            self.distill is None or self.needs_negatives,
            "--distill learns from the teacher's scores of mined negatives, and "
            "--negatives-per-positive is 0",
        )
        _check(
            self.distill is None or self.distill_weight < 1 or self.in_batch == "none",
            "--distill-weight 1 leaves nothing of the loss that --in-batch is for",
        )
        if self.freeze_passages:
            _check(
                self.in_batch == "none" and self.distill is None and self.towers != "shared",
                "--freeze-passages retrieves its own negatives for a query tower of its own: it "
                "goes without --in-batch, --distill and --towers shared",
            )

    @property
    def needs_negatives(self) -> bool:
        """Whether a segment trains on a file of negatives."""
        return self.negatives_per_positive > 0 and not self.freeze_passages

    def learning_rate(self, step: int) -> float:
        """Learning rate of optimizer step `step` (from 0): linear warm-up, then decay to zero at
        `total_steps` in a line or half a cosine, or constant."""
        factor = 1.0
        if step < self.warmup_steps:
            factor = (step + 1) / self.warmup_steps
        elif self.schedule != "constant" and self.total_steps > self.warmup_steps:
            factor = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
            factor = max(0.0, factor)
            if self.schedule == "cosine":
                factor = 0.5 * (1 - math.cos(math.pi * factor))
        return self.lr * factor


@dataclass(frozen=True)
class SegmentConfig:
    """How one call trains, beside the run's identity."""

    steps: int = 1000
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 = only at the end of the call."""
    state_minutes: float = 10.0
    log_every: int = 10
    grad_cache: int = 0
    """Rows encoded at a time by gradient caching; 0 = the whole batch at once."""
    gradient_checkpointing: bool = False
    track: str | None = None
    follow: bool = False
    """Train on the run's published generations as they come."""
    max_staleness: int = 0
    """Steps between the negatives' checkpoint and the step trained, at most; 0 = any."""

    def __post_init__(self) -> None:
        _check_finite(self)
        _check(self.steps >= 0, "--steps must not be negative")
        _check(self.checkpoint_every >= 0, "--checkpoint-every must not be negative")
        _check(self.log_every >= 1, "--log-every must be at least 1")
        _check(self.grad_cache >= 0, "--grad-cache must not be negative")
        _check(self.max_staleness >= 0, "--max-staleness must not be negative")
        _check(
            not self.max_staleness or 0 < self.checkpoint_every <= self.max_staleness,
            "--max-staleness needs --checkpoint-every, and at least as many steps: fresher "
            "negatives come from a newer checkpoint",
        )


@dataclass(frozen=True)
class RefreshConfig(MineConfig):
    """What a refresh of a run makes; fixed at its first refresh."""

    dev_split: str = "dev"
    dev_depth: int = 100
    measures: str = MEASURES
    encode_dtype: str = "auto"
    index_factory: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.dev_depth > 0, "--dev-depth must be at least 1")

    @property
    def mining(self) -> MineConfig:
        """The part of it that mining needs."""
        return MineConfig(**{field.name: getattr(self, field.name) for field in fields(MineConfig)})


@dataclass(frozen=True)
class FollowConfig:
    """When an inferencer refreshes, and what it keeps; nothing of it shapes a generation."""

    refresh: str = "every"
    drift_threshold: float = 0.8
    keep: int = 2
    until: int = 0
    """The step whose generation is the last; 0 = none is."""

    def __post_init__(self) -> None:
        _check(0 <= self.drift_threshold <= 1, "--drift-threshold lies in 0..1")
        _check(self.keep >= 1, "--keep must be at least 1: the newest generation is in use")
        _check(self.until >= 0, "--until must not be negative")


@dataclass(frozen=True)
class LoopConfig:
    """The cycle: a checkpoint every `refresh_every` steps, `segments` times, a refresh from each
    one, and one before the first."""

    refresh_every: int = 10_000
    segments: int = 10
    mode: str = "auto"
    gpu_split: str = "1:1"
    patience: int = 0
    """Generations without a better dev measure before the run is stopped; 0 = never."""
    max_restarts: int = 3

    def __post_init__(self) -> None:
        _check(self.refresh_every >= 1, "--refresh-every must be at least 1")
        _check(self.segments >= 1, "--segments must be at least 1")
        _check(self.patience >= 0, "--patience must not be negative")
        _check(
            re.fullmatch(r"[1-9]\d*:[1-9]\d*", self.gpu_split) is not None,
            f"--gpu-split {self.gpu_split!r}: expected TRAINER:INFERENCER, for instance 1:1",
        )

    @property
    def split(self) -> tuple[int, int]:
        """Parts of the devices for trainer and inferencer."""
        trainer, inferencer = self.gpu_split.split(":")
        return int(trainer), int(inferencer)


@dataclass(frozen=True)
class DemoConfig:
    """The recipe of `ance demo`, tuned on its dev split (docs/reproduce.md)."""

    steps: int = 60
    segments: int = 2
    batch_size: int = 32
    lr: float = 2e-5
    depth: int = 50
    query_length: int = 32
    passage_length: int = 96
    seed: int = SEED


@dataclass(frozen=True)
class RerankConfig:
    """New scores for the top of a run."""

    depth: int = 100
    tag: str = "ance"

    def __post_init__(self) -> None:
        _check(self.depth > 0, "--depth must be at least 1")
        _check_tag(self.tag)


@dataclass(frozen=True)
class FuseConfig:
    """One run out of several. k = 60 is Cormack et al.'s."""

    method: str = "rrf"
    rrf_k: int = 60
    norm: str = "minmax"
    weights: str | None = None
    """One number a run, separated by commas; None = 1 each."""
    depth: int = 1000
    tag: str = "ance"

    def __post_init__(self) -> None:
        _check(self.depth > 0, "--depth must be at least 1")
        _check(self.rrf_k >= 0, "--rrf-k must not be negative")
        _check_tag(self.tag)

    def weights_of(self, num_runs: int) -> list[float]:
        """One finite weight for each run; `UsageProblem` where --weights gives something else."""
        if self.weights is None:
            return [1.0] * num_runs
        try:
            weights = [float(part) for part in self.weights.split(",")]
        except ValueError:
            weights = []
        _check(
            len(weights) == num_runs and all(map(math.isfinite, weights)),
            f"--weights {self.weights!r}: expected {num_runs} numbers, one for each run, for "
            f"instance {','.join(['1'] * num_runs)}",
        )
        return weights


@dataclass(frozen=True)
class ReadConfig:
    """Answers from the top of a run."""

    depth: int = 20
    answer_tokens: int = 0
    """The longest answer; 0 = the reader's own: 10 (DPR), 30 (other spans), 32 (generated)."""

    def __post_init__(self) -> None:
        _check(self.depth > 0, "--depth must be at least 1")
        _check(self.answer_tokens >= 0, "--answer-tokens must not be negative")
