"""The numbers that `ance init` proposes for a dataset: lengths, batch, steps, refreshes, depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ance_cli.config import Bm25Config
from ance_cli.config.presets import PRESETS, train_config
from ance_cli.config.sets import Side
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.training.launch import Devices
from ance_cli.training.run_creation import start_checkpoint
from ance_cli.training.sizing import LONGEST, DataSample, Workload, length_for, tokens_of

WARMUP_EPOCHS = SEGMENTS = 3
_MOST_SEGMENT_EPOCHS = 5
_EPOCH_STEPS, _SMALLEST_BATCH = 16, 4
"""The batch of a preset is halved until an epoch has so many steps, but not below so many pairs."""
_SMALL_STEPS = 2_000
"""`--preset small` is meant for warm-ups of fewer steps."""
_MOST_TIMED_WEIGHTS = 1_000_000_000
"""Loading a larger encoder for an estimate takes minutes, and memory for its gradients."""
_WORD_TOKENS, _SPECIAL_TOKENS = 1.3, 2
WORDS = f"words, at {_WORD_TOKENS} tokens each; with --ckpt tokens, and minutes"
"""What a proposal without an encoder is based on."""

Tokens = Mapping[Side, npt.NDArray[Any]]
"""(texts,) the tokens of a sample's texts, before they are cut."""


@dataclass(frozen=True)
class Proposal:
    """Settings that fit a dataset; fields are the names of flags, but for the last ones."""

    preset: str
    batch_size: int
    query_length: int
    passage_length: int
    depth: int
    refresh_every: int
    warmup: int
    """Steps of the warm-up."""
    epoch: float
    """Steps of an epoch."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that the warm-up and the loop share."""
        names = ("preset", "batch_size", "query_length", "passage_length")
        return {name: getattr(self, name) for name in names}

    @property
    def lengths(self) -> dict[Side, int]:
        return {"query": self.query_length, "passage": self.passage_length}

    @property
    def bm25_depth(self) -> int:
        return min(self.depth, Bm25Config.depth)

    @property
    def facts(self) -> dict[str, Any]:
        """The proposal for a summary."""
        steps = self.refresh_every * SEGMENTS
        return {
            **self.recipe,
            "depth": self.depth,
            "warm_up": {"steps": self.warmup, "epochs": round(self.warmup / self.epoch, 1)},
            "loop": {
                "steps": steps,
                "refresh_every": self.refresh_every,
                "segments": SEGMENTS,
                "epochs": round(steps / self.epoch, 1),
            },
        }


def propose(sample: DataSample, start: Checkpoint | None) -> tuple[Proposal, dict[Side, float]]:
    """The proposal for a dataset and an encoder, and the share of its texts that would be cut.

    Without an encoder, tokens are reckoned from words.
    """
    tokens = _words(sample) if start is None else tokens_of(start, sample)
    most = _limits(start)
    lengths = {side: length_for(side, tokens[side], most[side]) for side in tokens}
    preset, batch = _preset_and_batch(sample.num_pairs)
    epoch = sample.num_pairs / (batch * Devices().num_ranks)
    segment = _segment_epochs(sample, tokens, lengths, preset)
    cut = {side: float((tokens[side] > lengths[side]).mean()) for side in tokens}
    found = Proposal(
        preset, batch, lengths["query"], lengths["passage"], depth_for(sample.num_docs),
        math.ceil(segment * epoch), math.ceil(WARMUP_EPOCHS * epoch), epoch,
    )  # fmt: skip
    return found, cut


def depth_for(num_docs: int) -> int:
    """How deep to draw negatives from: 30 for a tiny corpus, 50 up to 15,000 passages, and the
    paper's 200 from 60,000 on.

    The top 200 of a small corpus are mostly easy negatives (docs/evidence/reproduce.md).
    """
    return min(max(30, num_docs // 10), max(50, num_docs // 300), 200)


def minutes_for(
    proposal: Proposal, sample: DataSample, start: Checkpoint, measures: bool
) -> dict[str, Any]:
    """The minutes of the proposal on this machine, and where they come from: with `measures` from
    some training steps of the encoder, which is loaded for them unless it is very large."""
    from ance_cli.training.rate import measured_rate, reckoned_rate

    devices = Devices()
    ranks = devices.num_ranks
    config = replace(train_config(proposal.preset, proposal.recipe), devices=ranks)
    work = Workload(start_checkpoint(start.path, config), config, sample)
    if measures and work.products.weights <= _MOST_TIMED_WEIGHTS:
        rate = measured_rate(work, devices.gpus)
    else:
        rate = reckoned_rate(devices.gpus, config.dtype)
    flops = {
        **({} if start.has_head else {"warm_up": proposal.warmup * work.step_flops}),
        "training": SEGMENTS * proposal.refresh_every * work.step_flops,
        "encoding": (SEGMENTS + 1) * work.encode_flops,
    }
    minutes = {name: rate.minutes(each, ranks) for name, each in flops.items()}
    return {"minutes": minutes, "based_on": rate.basis}


def _words(sample: DataSample) -> Tokens:
    passages = [passage.joined(" ") for passage in sample.passages]
    return {"query": _of_words(sample.queries), "passage": _of_words(passages)}


def _of_words(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([_WORD_TOKENS * len(text.split()) + _SPECIAL_TOKENS for text in texts])


def _limits(start: Checkpoint | None) -> dict[Side, int]:
    """The most tokens of a text that the encoder takes, or was trained with."""
    if start is None:
        return {"query": LONGEST, "passage": LONGEST}
    return {"query": start.settings.query_length, "passage": start.settings.passage_length}


def _preset_and_batch(num_pairs: int) -> tuple[str, int]:
    """`small` for runs of hundreds of steps, else `modern`."""
    of_small = PRESETS["small"]["batch_size"] * Devices().num_ranks
    preset = "small" if WARMUP_EPOCHS * num_pairs < _SMALL_STEPS * of_small else "modern"
    batch = PRESETS[preset]["batch_size"]
    while batch > _SMALLEST_BATCH and num_pairs < _EPOCH_STEPS * batch * Devices().num_ranks:
        batch //= 2
    return preset, batch


def _segment_epochs(
    sample: DataSample, tokens: Tokens, lengths: Mapping[Side, int], preset: str
) -> float:
    """Epochs between two refreshes: one, or as many as train for as long as a refresh encodes.

    A pass of a token in training costs about three in encoding.
    """
    mean = {side: float(np.minimum(tokens[side], lengths[side]).mean()) for side in tokens}
    passages = 1 + train_config(preset, {}).negatives_per_positive
    epoch = 3 * sample.num_pairs * (mean["query"] + passages * mean["passage"])
    return min(max(1.0, sample.num_docs * mean["passage"] / epoch), _MOST_SEGMENT_EPOCHS)
