"""A training run: its identity, and what may change from call to call."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.data import MIN_REL, EncoderChoices, MinRel, Similarity
from ance_cli.config.encoding import ComputeDtype, CpuWorkers, Gpus
from ance_cli.config.retrieval import SEED, Seed, parse_widths, widths_of
from ance_cli.config.sets import (
    Distill,
    HeadName,
    InBatch,
    LossName,
    OptimizerName,
    PoolingName,
    PresetName,
    Schedule,
    Sharding,
    Towers,
    Tracker,
)
from ance_cli.config.setting import DATA, RUNTIME, TRAINING, Config, Setting, check

ALL_LINEAR = "all-linear"

Loss = Annotated[LossName, Setting(
    "nll compares the positive with all negatives at once; pairwise, bce and hinge with one at a "
    "time.", TRAINING)]
Margin = Annotated[float, Setting("Margin of --loss hinge.", TRAINING, at_least=0)]
BatchSize = Annotated[int, Setting(
    "Queries per device and micro-batch.", TRAINING, at_least=1, at_most=1_000_000)]
Scale = Annotated[float, Setting(
    "Factor on the scores inside the loss: 1 / temperature (20 for cosine; default: the "
    "checkpoint's).", TRAINING, above=0)]
MaxStaleness = Annotated[int, Setting(
    "Oldest negatives to train on, in steps since their checkpoint; the trainer waits for a new "
    "generation beyond that. 0 = never wait.", TRAINING, at_least=0)]
CheckpointEvery = Annotated[int, Setting(
    "Steps between checkpoints; 0 = one at the end.", TRAINING, at_least=0)]
Preset = Annotated[PresetName, Setting("Named recipe; other flags override its values.", TRAINING)]
NegativesFile = Annotated[Path, Setting("Negatives file; - for stdin.", DATA, positional=True)]
FrozenEmbeddings = Annotated[Path, Setting(
    "Embeddings of the frozen passages, for --freeze-passages.", DATA, metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(EncoderChoices):
    """The recipe of a training run.

    `batch_size` is queries per device and micro-batch; an optimizer step sees
    `batch_size * devices * accumulation` pairs, also if a later call has fewer or more devices.
    The fields of `EncoderChoices` and `scale`, `dim` replace the start checkpoint's settings.
    """

    optimizer: Annotated[OptimizerName, Setting(
        "Optimizer: AdamW, AdamW with 8-bit moments, or LAMB as in the paper.", TRAINING)] = "adamw"
    lr: Annotated[float, Setting("Peak learning rate.", TRAINING, above=0)] = 2e-5
    schedule: Annotated[Schedule, Setting(
        "Learning rate after the warm-up: linear or cosine decay to 0 at --total-steps, or "
        "constant.", TRAINING)] = "linear"
    warmup_steps: Annotated[int, Setting(
        "Steps of linear learning-rate warm-up.", TRAINING, at_least=0)] = 0
    total_steps: Annotated[int, Setting(
        "Steps until the learning rate has decayed to 0; 0 = the steps of the first call.",
        TRAINING, at_least=0)] = 0
    weight_decay: Annotated[float, Setting(
        "Weight decay; biases and norms have none.", TRAINING, at_least=0)] = 0.01
    layer_decay: Annotated[float, Setting(
        "Factor on the learning rate for each layer further below the head; 1 = off.", TRAINING,
        above=0, at_most=1)] = 1.0
    freeze_layers: Annotated[int, Setting(
        "Lowest layers that are not trained, and the embeddings with them; 0 = train all.",
        TRAINING, at_least=0)] = 0
    max_grad_norm: Annotated[float, Setting(
        "Norm at which gradients are clipped.", TRAINING, above=0)] = 1.0
    batch_size: BatchSize = 32
    accumulation: Annotated[int, Setting(
        "Micro-batches per optimizer step.", TRAINING, at_least=1, at_most=1_000_000)] = 1
    negatives_per_positive: Annotated[int, Setting(
        "Mined negatives per pair and step; 0 = none.", TRAINING, at_least=0, at_most=100_000)] = 1
    in_batch: Annotated[InBatch, Setting(
        "Documents of the whole batch, across devices, that are added to a query's negatives: all "
        "of them, the hardest one (NCE) or a random one. Known positives of the query are left "
        "out.", TRAINING)] = "none"
    in_batch_margin: Annotated[float, Setting(
        "Leave out documents of the batch that score above the query's positive by more than this, "
        "as likely positives without a label. In the model's own scores, before --scale: cosines, "
        "or dot products. A value below 0 leaves out more.", TRAINING)] | None = None
    loss: Loss = "nll"
    margin: Margin = 1.0
    distill: Annotated[Distill, Setting(
        "Also learn from the cross-encoder's scores in the negatives file (mine --teacher), by "
        "MarginMSE or KL divergence.", TRAINING)] | None = None
    distill_weight: Annotated[float, Setting(
        "Weight of the distillation loss; the rest is --loss.", TRAINING, at_least=0,
        at_most=1)] = 0.5
    matryoshka: Annotated[str, Setting(
        "Train the first dimensions of the vectors as vectors by themselves: the loss is the mean "
        "over these widths, for instance 256,128,64, and the full one (Matryoshka).", TRAINING,
        metavar="N,N")] | None = None
    dropout: Annotated[float, Setting(
        "Dropout in training; use 0 for short runs (default: the checkpoint's).", TRAINING,
        at_least=0, below=1)] | None = None
    dtype: ComputeDtype = "auto"
    seed: Seed = SEED
    min_rel: MinRel = MIN_REL
    towers: Annotated[Towers, Setting(
        "One encoder for queries and passages (shared), or one each (two; default: as in the "
        "checkpoint).", TRAINING)] | None = None
    similarity: Similarity | None = None
    head: Annotated[HeadName, Setting(
        "Head of a checkpoint without one. pooled: what inference servers apply, a pooling and "
        "Normalize (default). paper: [CLS], Linear, LayerNorm, scored by dot product.",
        TRAINING)] | None = None
    pooling: Annotated[PoolingName, Setting(
        "Pooling of a new head (default: lasttoken for a causal decoder, else mean; cls for "
        "--head paper).", TRAINING)] | None = None
    normalize: Annotated[bool, Setting(
        "Scale vectors to length one by a Normalize module at the end.", TRAINING)] = False
    lora_rank: Annotated[int, Setting(
        "Train a LoRA adapter of this rank and a new head, instead of all weights; 0 = off.",
        TRAINING, at_least=0, at_most=4096)] = 0
    lora_alpha: Annotated[float, Setting(
        "Factor of the adapter, divided by --lora-rank.", TRAINING, above=0)] = 32.0
    lora_dropout: Annotated[float, Setting(
        "Dropout on the adapter's input.", TRAINING, at_least=0, below=1)] = 0.0
    lora_targets: Annotated[str, Setting(
        f"Linear maps to adapt, separated by commas; {ALL_LINEAR} = every one of the backbone.",
        TRAINING)] = ALL_LINEAR
    scale: Scale | None = None
    dim: Annotated[int, Setting(
        "Dimensions of a new head (default: the hidden size).", TRAINING, at_least=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RecipeConfig):
    """The identity of a training run: what a later segment must repeat (or leave out)."""

    devices: Annotated[int, Setting("Devices of the first call.", TRAINING, is_flag=False)] = 1
    freeze_passages: Annotated[bool, Setting(
        "Train the query encoder alone (ADORE), on negatives that each step retrieves from the "
        "--embeddings of the frozen passage encoder.", TRAINING)] = False
    live_depth: Annotated[int, Setting(
        "Documents that --freeze-passages retrieves per query and step.", TRAINING,
        at_least=1)] = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.negatives_per_positive > 0 or self.in_batch != "none",
            "--negatives-per-positive 0 leaves nothing to train against: add --in-batch",
        )
        check(
            self.in_batch_margin is None or self.in_batch != "none",
            "--in-batch-margin leaves out documents that --in-batch adds: add --in-batch",
        )
        check(self.dtype != "fp16", "--dtype fp16: training runs in bf16 or fp32")
        check(
            self.lora_rank > 0
            or (self.lora_alpha, self.lora_dropout, self.lora_targets) == (32.0, 0.0, ALL_LINEAR),
            "--lora-alpha, --lora-dropout and --lora-targets belong to an adapter: add --lora-rank",
        )
        check(
            self.distill is None or self.needs_negatives,
            "--distill learns from the teacher's scores of mined negatives, and "
            "--negatives-per-positive is 0",
        )
        check(
            self.distill is None or self.distill_weight < 1 or self.in_batch == "none",
            "--distill-weight 1 leaves no weight for the loss that --in-batch adds to",
        )
        if self.matryoshka is not None:
            parse_widths("--matryoshka", self.matryoshka)
        if self.freeze_passages:
            check(
                self.in_batch == "none" and self.distill is None and self.matryoshka is None
                and self.towers != "shared",
                "--freeze-passages retrieves its own negatives for a separate query encoder: it "
                "cannot be combined with --in-batch, --distill, --matryoshka or --towers shared",
            )

    @property
    def needs_negatives(self) -> bool:
        """Whether a segment trains on a file of negatives."""
        return self.negatives_per_positive > 0 and not self.freeze_passages

    def widths(self, dim: int) -> list[int]:
        """The widths at which vectors of `dim` dimensions are trained, the full one first."""
        return widths_of("--matryoshka", self.matryoshka, dim) if self.matryoshka else [dim]


@dataclass(frozen=True, kw_only=True)
class RunningConfig(Config):
    """How a call trains; the result does not depend on it beyond rounding."""

    log_every: Annotated[int, Setting(
        "Steps between lines of metrics.jsonl.", TRAINING, at_least=1)] = 10
    grad_cache: Annotated[int, Setting(
        "Queries, and passage rows, to encode at a time with gradient caching, for batches larger "
        "than memory; 0 = off.", TRAINING, at_least=0)] = 0
    gradient_checkpointing: Annotated[bool, Setting(
        "Recompute activations in the backward pass: less memory, more time.", TRAINING)] = False
    shard: Annotated[Sharding, Setting(
        "full: each device keeps a part of the weights, gradients and moments (FSDP), for an "
        "encoder that is too large for one.", TRAINING)] = "none"
    track: Annotated[Tracker, Setting(
        "Also send the training log to TensorBoard or Weights & Biases.", RUNTIME)] | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunningConfig):
    """How one call trains, besides the run's identity."""

    steps: Annotated[int, Setting(
        "Optimizer steps to add; 0 = only prepare the run.", TRAINING, at_least=0)] = 1000
    checkpoint_every: CheckpointEvery = 0
    state_minutes: Annotated[float, Setting(
        "Minutes between resume states.", TRAINING, at_least=0)] = 10.0
    follow: Annotated[bool, Setting(
        "Train on the run's generations as ance refresh publishes them.", TRAINING)] = False
    max_staleness: MaxStaleness = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            not self.max_staleness or 0 < self.checkpoint_every <= self.max_staleness,
            "--max-staleness needs a --checkpoint-every that is at most as large: newer negatives "
            "come from a newer checkpoint",
        )


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(RunningConfig):
    """How each call of a loop trains."""

    cpu_workers: CpuWorkers = 1


@dataclass(frozen=True, kw_only=True)
class NodeConfig(Config):
    """The devices and machines that train together."""

    gpus: Gpus = "all"
    cpu_workers: CpuWorkers = 1
    nnodes: Annotated[int, Setting(
        "Machines that train together.", RUNTIME, at_least=1)] = 1
    node_rank: Annotated[int, Setting(
        "Number of this machine, from 0.", RUNTIME, at_least=0)] = 0
    rdzv_endpoint: Annotated[str, Setting(
        "HOST:PORT of machine 0, to which the others connect.", RUNTIME,
        metavar="HOST:PORT", only_asked=True)] | None = None
