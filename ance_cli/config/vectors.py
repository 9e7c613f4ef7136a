"""Making vectors and searching them, and what is made of runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ance_cli.config.common import (
    MIN_REL,
    PAIR_LENGTH,
    SEED,
    check,
    check_pair_length,
    check_tag,
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
    ray: str | None = None
    """Address of a Ray cluster that does the work, or `local`."""

    def __post_init__(self) -> None:
        check(self.batch_tokens >= 0, "--batch-tokens must not be negative")
        check(self.cpu_workers >= 1, "--cpu-workers must be at least 1")

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
        check(self.train_rows > 0, "--train-rows must be at least 1")
        check(self.probes is None or self.probes > 0, "--probes must be at least 1")
        check(self.recall_check >= 0, "--recall-check must not be negative")


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
        check(self.depth > 0, "--depth must be at least 1")
        check(self.probes is None or self.probes > 0, "--probes must be at least 1")
        check_tag(self.tag)


@dataclass(frozen=True)
class RerankConfig:
    """New scores for the top of a run."""

    depth: int = 100
    tag: str = "ance"
    pair_length: int = PAIR_LENGTH

    def __post_init__(self) -> None:
        check(self.depth > 0, "--depth must be at least 1")
        check_tag(self.tag)
        check_pair_length(self.pair_length)


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
        check(self.depth > 0, "--depth must be at least 1")
        check(self.rrf_k >= 0, "--rrf-k must not be negative")
        check_tag(self.tag)

    def weights_of(self, num_runs: int) -> list[float]:
        """One finite weight for each run; `UsageProblem` where --weights gives something else."""
        if self.weights is None:
            return [1.0] * num_runs
        try:
            weights = [float(part) for part in self.weights.split(",")]
        except ValueError:
            weights = []
        check(
            len(weights) == num_runs and all(map(math.isfinite, weights)),
            f"--weights {self.weights!r}: expected {num_runs} numbers, one for each run, for "
            f"instance {','.join(['1'] * num_runs)}",
        )
        return weights


@dataclass(frozen=True)
class ExportConfig:
    """What goes from negatives and runs into a neighbour's rows."""

    min_rel: int = MIN_REL
    negatives: int | None = None
    """The first so many of each pair; None = all."""
    depth: int = 100
    separator: str = " "

    def __post_init__(self) -> None:
        check(self.negatives is None or self.negatives > 0, "--negatives must be at least 1")
        check(self.depth > 0, "--depth must be at least 1")


@dataclass(frozen=True)
class ReadConfig:
    """Answers from the top of a run."""

    depth: int = 20
    answer_tokens: int = 0
    """The longest answer; 0 = the reader's own: 10 (DPR), 30 (other spans), 32 (generated)."""

    def __post_init__(self) -> None:
        check(self.depth > 0, "--depth must be at least 1")
        check(self.answer_tokens >= 0, "--answer-tokens must not be negative")
