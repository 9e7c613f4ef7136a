"""A training run: its identity, and what may change from call to call."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ance_cli.config.common import MIN_REL, SEED, check, check_finite, flag_of


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
        check_finite(self)
        for name, least in (
            ("batch_size", 1), ("accumulation", 1), ("live_depth", 1), ("dim", 1),
            ("max_segments", 1), ("query_length", 3), ("passage_length", 3),
        ):  # fmt: skip
            value = getattr(self, name)
            check(value is None or value >= least, f"{flag_of(name)} must be at least {least}")
        for name in ("lr", "max_grad_norm", "scale"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{flag_of(name)} must be greater than 0")
        for name in (
            "warmup_steps", "total_steps", "weight_decay", "negatives_per_positive", "margin",
        ):  # fmt: skip
            check(getattr(self, name) >= 0, f"{flag_of(name)} must not be negative")
        check(
            self.negatives_per_positive > 0 or self.in_batch != "none",
            "--negatives-per-positive 0 leaves nothing to train against: add --in-batch",
        )
        check(self.dropout is None or 0 <= self.dropout < 1, "--dropout lies in 0..1")
        check(self.dtype != "fp16", "--dtype fp16: training runs in bf16 or fp32")
        check(0 <= self.distill_weight <= 1, "--distill-weight lies in 0..1")
        check(
            self.distill is None or self.needs_negatives,
            "--distill learns from the teacher's scores of mined negatives, and "
            "--negatives-per-positive is 0",
        )
        check(
            self.distill is None or self.distill_weight < 1 or self.in_batch == "none",
            "--distill-weight 1 leaves nothing of the loss that --in-batch is for",
        )
        if self.freeze_passages:
            check(
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
        check_finite(self)
        check(self.steps >= 0, "--steps must not be negative")
        check(self.checkpoint_every >= 0, "--checkpoint-every must not be negative")
        check(self.log_every >= 1, "--log-every must be at least 1")
        check(self.grad_cache >= 0, "--grad-cache must not be negative")
        check(self.max_staleness >= 0, "--max-staleness must not be negative")
        check(
            not self.max_staleness or 0 < self.checkpoint_every <= self.max_staleness,
            "--max-staleness needs --checkpoint-every, and at least as many steps: fresher "
            "negatives come from a newer checkpoint",
        )
