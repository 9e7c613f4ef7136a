"""Drawing negatives from what was ranked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ance_cli.config.common import (
    MIN_REL,
    PAIR_LENGTH,
    SEED,
    check,
    check_finite,
    check_pair_length,
)
from ance_cli.errors import UsageProblem


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
    pair_length: int = PAIR_LENGTH
    engine: str = "lucene"
    k1: float = 0.9
    b: float = 0.4
    seed: int = SEED
    min_rel: int = MIN_REL

    def __post_init__(self) -> None:
        check_finite(self)
        if self.teacher is not None:  # so that it means the same from another folder
            object.__setattr__(self, "teacher", str(Path(self.teacher).absolute()))
        check(self.depth > 0, "--depth must be at least 1")
        check(self.negatives >= 0, "--negatives must not be negative")
        check(self.sampler_temperature > 0, "--sampler-temperature must be greater than 0")
        check(self.simans_a >= 0, "--simans-a must not be negative")
        check(
            0 <= self.range_min < self.depth,
            f"--range-min {self.range_min} must be less than --depth {self.depth}",
        )
        check(
            self.range_max is None or self.range_max > self.range_min,
            f"--range-max {self.range_max} must be greater than --range-min {self.range_min}",
        )
        check(
            self.min_score is None or self.max_score is None or self.min_score <= self.max_score,
            "--min-score must not be greater than --max-score",
        )
        check(self.k1 >= 0 and 0 <= self.b <= 1, "--k1 must not be negative, --b lies in 0..1")
        check(self.teacher_pairs >= 0, "--teacher-pairs must not be negative")
        check_pair_length(self.pair_length)
        check(
            self.teacher is not None or (self.teacher_max is None and not self.teacher_pairs),
            "--teacher-max and --teacher-pairs need --teacher",
        )
        check(
            self.teacher is not None or self.pair_length == PAIR_LENGTH,
            "--pair-length needs --teacher",
        )
        if self.teacher_max is not None:
            check(0 <= self.teacher_max <= 1, "--teacher-max is a probability: it lies in 0..1")
            check(
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
class MineConfig(DrawConfig):
    """ANN negatives. The paper draws one negative a positive, uniformly from the top 200; 20 are
    kept for each pair, as in its released scripts, for the trainer to draw from."""

    probes: int | None = None
    audit_bm25: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.probes is None or self.probes > 0, "--probes must be at least 1")
