"""Refreshes and loops."""
# fmt: off

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.encoding import DriverConfig, Gpus, LocalGpus, Ray, check_local_gpus
from ance_cli.config.mining import MineConfig, MineRules
from ance_cli.config.retrieval import MEASURES, Measures
from ance_cli.config.sets import BaselineName, Dtype, Mode, OnGuard, RefreshPolicy
from ance_cli.config.setting import METHOD, RUNTIME, TRAINING, Config, Setting, check
from ance_cli.config.training import MaxStaleness

NO_DEV = "none"
"""The `dev_split` of a refresh that measures nothing."""
GUARD_MARGIN = 0.02

FollowRun = Annotated[bool, Setting(
    "Keep running, and refresh from the run's checkpoints as they appear, up to --until.",
    TRAINING)]
Baseline = Annotated[BaselineName, Setting(
    "Arm of the paper's comparison; sets --mix, --in-batch and similar flags, which others "
    "override.", TRAINING)]
TrainGpus = Annotated[str, Setting("GPUs of the trainer.", RUNTIME, metavar="LIST")]
InferGpus = Annotated[str, Setting("GPUs of the refreshes.", RUNTIME, metavar="LIST")]


@dataclass(frozen=True, kw_only=True)
class RefreshRules(MineRules):
    """What a refresh makes; fixed at a run's first refresh."""

    dev_split: Annotated[str, Setting(
        "Split that a refresh measures on; none = measure nothing.", METHOD,
        metavar="NAME")] = "dev"
    dev_depth: Annotated[int, Setting("Documents ranked per dev query.", METHOD, at_least=1)] = 100
    measures: Measures = MEASURES
    guard: Annotated[str, Setting(
        "General collection that each refresh measures too, as DIR or DIR:SPLIT (default split: "
        "dev, or else test). A generation that falls on it cannot be the best.", METHOD,
        metavar="DIR", shapes=False)] | None = None
    guard_margin: Annotated[float, Setting(
        "How far the first of --measures may fall on the guard below the run's start.", METHOD,
        at_least=0, shapes=False)] = GUARD_MARGIN
    encode_dtype: Annotated[Dtype, Setting(
        "Number format of the encoder in refreshes; auto takes bf16 if the device supports it "
        "natively.", RUNTIME)] = "auto"
    index_factory: Annotated[str, Setting(
        "faiss factory string of an index to search instead of searching exactly.",
        METHOD)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guard is not None:  # so that it names the same folder from everywhere
            object.__setattr__(self, "guard", str(Path(self.guard).absolute()))
        check(
            self.guard is not None or self.guard_margin == GUARD_MARGIN,
            "--guard-margin needs --guard",
        )


@dataclass(frozen=True, kw_only=True)
class RefreshConfig(RefreshRules, MineConfig):
    """The rules of a refresh, with the run's seed and labels."""


@dataclass(frozen=True, kw_only=True)
class RefreshTiming(Config):
    """When a run is refreshed, and how many generations are kept; no generation depends on it."""

    refresh: Annotated[RefreshPolicy, Setting(
        "When to refresh. every: from every new checkpoint. auto: when the model has moved away "
        "from its negatives (--drift-threshold).", TRAINING)] = "every"
    drift_threshold: Annotated[float, Setting(
        "Overlap of the probe's rankings below which --refresh auto refreshes.", TRAINING,
        at_least=0, at_most=1)] = 0.8
    keep: Annotated[int, Setting(
        "Newest generations whose embeddings, index and candidates are kept; at least 1, because "
        "the newest is in use.", RUNTIME, at_least=1)] = 2


@dataclass(frozen=True, kw_only=True)
class FollowConfig(RefreshTiming):
    """When `ance refresh --follow` refreshes, and when it ends."""

    until: Annotated[int, Setting(
        "With --follow: step whose generation is the last; 0 = run until stopped.", TRAINING,
        at_least=0)] = 0


@dataclass(frozen=True, kw_only=True)
class RefreshDevices(Config):
    """Where a refresh computes."""

    gpus: Gpus = "all"
    ray: Ray | None = None
    local_gpus: LocalGpus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_local_gpus(self.local_gpus, self.ray)

    def compute(self, dtype: Dtype) -> DriverConfig:
        """The same devices with the number format of the run's encoder."""
        return DriverConfig(
            dtype=dtype, gpus=self.gpus, ray=self.ray, local_gpus=self.local_gpus
        )


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """The cycle: a checkpoint every `refresh_every` steps, `segments` times, a refresh from each
    of them, and one before the first."""

    refresh_every: Annotated[int, Setting(
        "Steps between refreshes.", TRAINING, at_least=1)] = 10_000
    segments: Annotated[int, Setting(
        "Segments of --refresh-every steps to train.", TRAINING, at_least=1)] = 10
    mode: Annotated[Mode, Setting(
        "async trains and refreshes at the same time, sync alternates; auto is async if both have "
        "GPUs of their own.", TRAINING)] = "auto"
    gpu_split: Annotated[str, Setting(
        "Ratio of the trainer's GPUs to those of the refreshes (with --mode async on a CPU: of "
        "cores).", RUNTIME, metavar="A:B")] = "1:1"
    patience: Annotated[int, Setting(
        "Stop after this many generations without a better dev measure; 0 = never.", TRAINING,
        at_least=0)] = 0
    on_guard: Annotated[OnGuard, Setting(
        "What to do when a generation falls on --guard by more than --guard-margin.",
        TRAINING)] = "warn"
    max_restarts: Annotated[int, Setting(
        "How often a process that died is started again.", RUNTIME, at_least=0)] = 3
    max_staleness: MaxStaleness = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            re.fullmatch(r"[1-9]\d{0,3}:[1-9]\d{0,3}", self.gpu_split, re.ASCII) is not None,
            f"--gpu-split {self.gpu_split!r}: expected TRAINER:REFRESHES, for instance 1:1",
        )
        check(
            not 0 < self.max_staleness < self.refresh_every,
            f"--max-staleness {self.max_staleness} is less than --refresh-every "
            f"{self.refresh_every}: newer negatives come from a newer checkpoint",
        )

    @property
    def last_step(self) -> int:
        """The step at which the loop ends."""
        return self.segments * self.refresh_every

    @property
    def split(self) -> tuple[int, int]:
        """Parts of the devices for the trainer and for the refreshes."""
        trainer, refreshes = self.gpu_split.split(":")
        return int(trainer), int(refreshes)


@dataclass(frozen=True, kw_only=True)
class LoopDevices(Config):
    """Which devices a loop may use, and which of them are for its trainer or its refreshes."""

    gpus: Gpus = "all"
    train_gpus: TrainGpus | None = None
    infer_gpus: InferGpus | None = None
    ray: Ray | None = None
    local_gpus: LocalGpus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_local_gpus(self.local_gpus, self.ray)
