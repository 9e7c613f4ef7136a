"""Encoding texts: where it runs, in which numbers, and what is kept."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.sets import Dtype, OutputDtype, Side
from ance_cli.config.setting import DATA, METHOD, RUNTIME, Config, Setting, check

_CPU_BATCH_TOKENS = 2_048
_GPU_BATCH_TOKENS, _MOST_GPU_BATCH_TOKENS = 24_576, 131_072
_BERT_BASE_FLOPS = 170_000_000
"""Of one token of a forward pass."""

Gpus = Annotated[str, Setting(
    "GPUs to use: 0-3, 0,2, all, or none for the CPU.", RUNTIME, metavar="LIST", shapes=False)]
ComputeDtype = Annotated[Dtype, Setting(
    "Number format of the computation; auto takes bf16 if the device supports it natively.",
    RUNTIME)]
CpuWorkers = Annotated[int, Setting(
    "Processes to use on a CPU.", RUNTIME, at_least=1, at_most=1024, shapes=False)]
Ray = Annotated[str, Setting(
    "Ray cluster to work in: HOST:PORT or auto, whose nodes share the file system, or local for "
    "one on this machine.", RUNTIME, metavar="ADDRESS", shapes=False, only_asked=True)]
LocalGpus = Annotated[str, Setting(
    "With --ray: GPUs of this machine for the command's own work, such as encoding queries "
    "(default: as --gpus; in a loop none).", RUNTIME, metavar="LIST", shapes=False)]
Tokens = Annotated[Path, Setting(
    "Token cache of the corpus, created if it does not exist (default: in the cache folder).", DATA,
    metavar="DIR", is_output=True)]
Shard = Annotated[str, Setting(
    "Encode part I of N (from 1), for N such calls that run at the same time and share the "
    "output's file system. The last call to finish publishes the output.", RUNTIME, metavar="I/N")]

Append = Annotated[bool, Setting(
    "Bring an output up to date with a changed corpus: encode only new and changed documents, copy "
    "the other vectors, drop those of removed documents.", RUNTIME)]


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Config):
    """Where a model runs, and in which numbers."""

    gpus: Gpus = "all"
    dtype: ComputeDtype = "auto"


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(DeviceConfig):
    """Where a model runs, in which numbers, and how much at a time."""

    batch_tokens: Annotated[int, Setting(
        f"Padded tokens per batch; 0 = {_CPU_BATCH_TOKENS:,} on a CPU, {_GPU_BATCH_TOKENS:,} on a "
        f"GPU, and up to {_MOST_GPU_BATCH_TOKENS:,} for encoders smaller than BERT-base.",
        RUNTIME, at_least=0, shapes=False)] = 0

    def tokens_for(self, device_type: str, flops: int = _BERT_BASE_FLOPS) -> int:
        """Padded tokens per batch on a device of type `cpu` or `cuda`; `flops` are those of one
        token of a forward pass.

        Launching a batch takes a host some 6 ms, whatever its size. BERT-base then works for 10 ms
        on an H100 (reckoned, not measured). A smaller encoder needs more tokens to work as long.
        """
        if self.batch_tokens or device_type == "cpu":
            return self.batch_tokens or _CPU_BATCH_TOKENS
        as_long = _GPU_BATCH_TOKENS * _BERT_BASE_FLOPS // max(flops, 1)
        return min(max(as_long, _GPU_BATCH_TOKENS), _MOST_GPU_BATCH_TOKENS)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(ComputeConfig):
    """`ComputeConfig` on this machine or in a Ray cluster."""

    ray: Ray | None = None


@dataclass(frozen=True, kw_only=True)
class DriverConfig(ClusterConfig):
    """`ClusterConfig` of a command that also computes on this machine when it has a cluster."""

    local_gpus: LocalGpus | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_local_gpus(self.local_gpus, self.ray)

    @property
    def local(self) -> ComputeConfig:
        """Where this machine computes."""
        gpus = self.gpus if self.local_gpus is None else self.local_gpus
        return ComputeConfig(gpus=gpus, dtype=self.dtype, batch_tokens=self.batch_tokens)


def check_local_gpus(local_gpus: str | None, ray: str | None) -> None:
    """Raise a `UsageProblem` if `--local-gpus` is given without `--ray`."""
    check(
        local_gpus is None or ray is not None,
        f"--local-gpus {local_gpus} without --ray: this machine does all the work",
        hint="name its GPUs with --gpus, or a cluster with --ray",
    )


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(ClusterConfig):
    """Vectors of a corpus or of queries."""

    side: Annotated[Side, Setting("Encode the corpus (passage) or queries.", METHOD)] = "passage"
    output_dtype: Annotated[OutputDtype, Setting(
        "Number format of the stored vectors. int8 rounds each component to 255 steps, binary "
        "keeps its sign alone; the summary says what a search still finds.", METHOD)] = "float16"
    cpu_workers: CpuWorkers = 1
