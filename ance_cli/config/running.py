"""Refreshes, loops, and what looks at a whole run."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ance_cli.config.common import MEASURES, MIN_REL, SEED, check, check_finite, flag_of
from ance_cli.config.negatives import DrawConfig, MineConfig


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
        check(self.dev_depth > 0, "--dev-depth must be at least 1")

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
        check(0 <= self.drift_threshold <= 1, "--drift-threshold lies in 0..1")
        check(self.keep >= 1, "--keep must be at least 1: the newest generation is in use")
        check(self.until >= 0, "--until must not be negative")


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
        check(self.refresh_every >= 1, "--refresh-every must be at least 1")
        check(self.segments >= 1, "--segments must be at least 1")
        check(self.patience >= 0, "--patience must not be negative")
        check(
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
class DiagnoseConfig:
    """What `ance diagnose` looks at. The paper meets the top 100 when testing (ICLR Sec. 6.3)."""

    sample: int = 32
    """Queries, each with one of its positives."""
    draws: int = 8
    """Negatives drawn by each sampler for a pair, whose gradients are computed."""
    depth: int = 100
    batch_size: int = 32
    suspects: int = 10
    loss: str = "nll"
    margin: float = 1.0
    scale: float | None = None
    """None = the checkpoint's."""
    engine: str = DrawConfig.engine
    k1: float = DrawConfig.k1
    b: float = DrawConfig.b
    seed: int = SEED
    min_rel: int = MIN_REL
    probes: int | None = None

    def __post_init__(self) -> None:
        check_finite(self)
        for name, least in (("sample", 1), ("draws", 2), ("batch_size", 2), ("suspects", 0)):
            check(getattr(self, name) >= least, f"{flag_of(name)} must be at least {least}")
        check(self.scale is None or self.scale > 0, "--scale must be greater than 0")
        check(self.probes is None or self.probes > 0, "--probes must be at least 1")
        check(self.margin >= 0, "--margin must not be negative")
        self.ranking  # noqa: B018 (checks the rest)

    @property
    def ranking(self) -> DrawConfig:
        """The part of it that BM25 and the labels need."""
        return DrawConfig(
            depth=self.depth, engine=self.engine, k1=self.k1, b=self.b, min_rel=self.min_rel
        )
