"""Every default and every preset, once. Imports nothing heavy, so that `--help` can show them.

One frozen dataclass a stage. The field names are the flags' names; the docs of a flag stand in
`cli/options.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ance_cli.errors import UsageProblem

SEED = 42
MIN_REL = 1
MEASURES = "RR@10 nDCG@10 R@100"


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise UsageProblem(what)


@dataclass(frozen=True)
class Bm25Config:
    """BM25 and the negatives drawn from it. k1 and b are Anserini's defaults."""

    engine: str = "lucene"
    k1: float = 0.9
    b: float = 0.4
    depth: int = 100
    negatives: int = 20
    mix: str = "bm25"
    sampler: str = "uniform"
    seed: int = SEED
    min_rel: int = MIN_REL

    def __post_init__(self) -> None:
        _check(self.depth > 0 and self.negatives > 0, "--depth and --negatives must be at least 1")
        _check(self.k1 >= 0 and 0 <= self.b <= 1, "--k1 must not be negative, --b lies in 0..1")


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

    def __post_init__(self) -> None:
        _check(self.train_rows > 0, "--train-rows must be at least 1")


@dataclass(frozen=True)
class MineConfig:
    """ANN negatives. The paper draws one negative a positive, uniformly from the top 200; 20 are
    kept for each pair, as in its released scripts, for the trainer to draw from."""

    depth: int = 200
    negatives: int = 20
    mix: str = "ann"
    sampler: str = "uniform"
    seed: int = SEED
    min_rel: int = MIN_REL
    probes: int | None = None

    def __post_init__(self) -> None:
        _check(self.depth > 0 and self.negatives > 0, "--depth and --negatives must be at least 1")
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
        _check(self.tag.split() == [self.tag], "--tag is one word: it is a column of the run")


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
        for name in ("batch_size", "accumulation", "live_depth"):
            _check(getattr(self, name) >= 1, f"--{name.replace('_', '-')} must be at least 1")
        for name in ("lr", "max_grad_norm"):
            _check(getattr(self, name) > 0, f"--{name.replace('_', '-')} must be greater than 0")
        for name in ("warmup_steps", "total_steps", "weight_decay", "negatives_per_positive"):
            _check(getattr(self, name) >= 0, f"--{name.replace('_', '-')} must not be negative")
        _check(
            self.negatives_per_positive > 0 or self.in_batch != "none",
            "--negatives-per-positive 0 leaves nothing to train against: add --in-batch",
        )
        _check(self.dropout is None or 0 <= self.dropout < 1, "--dropout lies in 0..1")
        _check(self.dtype != "fp16", "--dtype fp16: training runs in bf16 or fp32")
        _check(0 <= self.distill_weight <= 1, "--distill-weight lies in 0..1")
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

    def __post_init__(self) -> None:
        _check(self.steps >= 0, "--steps must not be negative")
        _check(self.log_every >= 1, "--log-every must be at least 1")
        _check(self.grad_cache >= 0, "--grad-cache must not be negative")


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
class LoopConfig:
    """The cycle: refresh, train `refresh_every` steps, `segments` times, and a last refresh."""

    refresh_every: int = 10_000
    segments: int = 10
    max_restarts: int = 3

    def __post_init__(self) -> None:
        _check(self.refresh_every >= 1, "--refresh-every must be at least 1")
        _check(self.segments >= 1, "--segments must be at least 1")


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


PRESETS: dict[str, dict[str, Any]] = {
    # released scripts of the paper: BM25 warm-up of RoBERTa-base
    "warmup": {
        "optimizer": "lamb", "lr": 2e-4, "warmup_steps": 1000, "batch_size": 32,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 128,
    },
    # released scripts: ANCE on MARCO passage, 4 GPUs with 8 x 2 each
    "ance-passage": {
        "optimizer": "lamb", "lr": 1e-6, "warmup_steps": 5000, "batch_size": 8, "accumulation": 2,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 512,
    },
    # released scripts: ANCE on MARCO document, FirstP
    "ance-doc-firstp": {
        "optimizer": "lamb", "lr": 5e-6, "warmup_steps": 3000, "batch_size": 8, "accumulation": 2,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 512,
    },
    # released scripts: ANCE on MARCO document, MaxP, 8 GPUs with 2 x 8 each; one sequence of 2,048
    # tokens is cut at every 512th
    "ance-doc-maxp": {
        "optimizer": "lamb", "lr": 1e-5, "warmup_steps": 500, "batch_size": 2, "accumulation": 8,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 512, "segmentation": "slice",
        "max_segments": 4,
    },
    # released scripts: NQ and TriviaQA from DPR's two towers, 8 GPUs with 16 each
    "ance-openqa": {
        "optimizer": "lamb", "lr": 1e-5, "warmup_steps": 1000, "batch_size": 16,
        "weight_decay": 0.0, "query_length": 256, "passage_length": 256, "towers": "two",
    },
    # what is common since (DPR, RocketQA, Contriever, E5): every document of the batch is a
    # negative of every query, beside hard ones
    "modern": {
        "optimizer": "adamw", "lr": 2e-5, "warmup_steps": 1000, "batch_size": 64,
        "in_batch": "all", "negatives_per_positive": 4, "query_length": 64, "passage_length": 256,
    },
    # runs of hundreds of steps on a small corpus (docs/reproduce.md): LAMB at the rates above
    # would move each tensor by a millionth of its norm a step, and dropout scatters the dot
    # products of layer-normed vectors by nearly what separates a hard negative from its positive
    "small": {
        "optimizer": "adamw", "lr": 3e-5, "warmup_steps": 0, "dropout": 0.0, "batch_size": 32,
        "query_length": 24, "passage_length": 96,
    },
}  # fmt: skip

BASELINES: dict[str, dict[str, Any]] = {
    # the paper's arms (Sec. 5, Table 1), each with one negative a positive: what `--mix` draws
    # from, or the batch itself, for which nothing is mined
    "rand": {"mix": "random"},
    "rand-batch": {"negatives": 0, "negatives_per_positive": 0, "in_batch": "random"},
    "nce": {"negatives": 0, "negatives_per_positive": 0, "in_batch": "hardest"},
    "bm25": {"mix": "bm25", "depth": 100},
    "bm25+rand": {"mix": "bm25:0.5,random:0.5", "depth": 100},
    "ance": {"mix": "ann"},
}
"""Settings of training and refreshing that make an arm of the paper's comparison."""


def train_config(preset: str | None, given: Mapping[str, Any]) -> TrainConfig:
    """Defaults, then the preset, then what was given explicitly."""
    if preset is not None and preset not in PRESETS:
        raise UsageProblem(
            f"--preset {preset!r} is not known", hint=f"the presets are {', '.join(PRESETS)}"
        )
    known = {field.name for field in fields(TrainConfig)}
    chosen = {**(PRESETS[preset] if preset else {}), **given}
    return replace(TrainConfig(), **{name: chosen[name] for name in chosen if name in known})
