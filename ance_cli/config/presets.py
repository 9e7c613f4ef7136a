"""Every named recipe, once, with its source: presets of training, and the paper's baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ance_cli.config import TrainConfig
from ance_cli.errors import UsageProblem

PRESETS: dict[str, dict[str, Any]] = {
    # released scripts of the paper: BM25 warm-up of RoBERTa-base
    "warmup": {
        "head": "paper",
        "optimizer": "lamb", "lr": 2e-4, "warmup_steps": 1000, "batch_size": 32,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 128,
    },
    # released scripts: ANCE on MARCO passage, 4 GPUs with 8 x 2 each
    "ance-passage": {
        "head": "paper",
        "optimizer": "lamb", "lr": 1e-6, "warmup_steps": 5000, "batch_size": 8, "accumulation": 2,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 512,
    },
    # released scripts: ANCE on MARCO document, FirstP
    "ance-doc-firstp": {
        "head": "paper",
        "optimizer": "lamb", "lr": 5e-6, "warmup_steps": 3000, "batch_size": 8, "accumulation": 2,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 512,
    },
    # released scripts: ANCE on MARCO document, MaxP, 8 GPUs with 2 x 8 each; one sequence of 2,048
    # tokens is cut at every 512th
    "ance-doc-maxp": {
        "head": "paper",
        "optimizer": "lamb", "lr": 1e-5, "warmup_steps": 500, "batch_size": 2, "accumulation": 8,
        "weight_decay": 0.0, "query_length": 64, "passage_length": 512, "segmentation": "slice",
        "max_segments": 4,
    },
    # released scripts: NQ and TriviaQA from DPR's two towers, 8 GPUs with 16 each
    "ance-openqa": {
        "head": "paper",
        "optimizer": "lamb", "lr": 1e-5, "warmup_steps": 1000, "batch_size": 16,
        "weight_decay": 0.0, "query_length": 256, "passage_length": 256, "towers": "two",
    },
    # what is common since (DPR, RocketQA, Contriever, E5): every document of the batch is a
    # negative of every query, beside hard ones
    "modern": {
        "optimizer": "adamw", "lr": 2e-5, "warmup_steps": 1000, "batch_size": 64,
        "in_batch": "all", "negatives_per_positive": 4, "query_length": 64, "passage_length": 256,
    },
    # runs of hundreds of steps on a small corpus (docs/evidence/reproduce.md): LAMB at the rates
    # above would move each tensor by a millionth of its norm a step, and dropout scatters the dot
    # products of layer-normed vectors by nearly what separates a hard negative from its positive
    "small": {
        "head": "paper",
        "optimizer": "adamw", "lr": 3e-5, "warmup_steps": 0, "dropout": 0.0, "batch_size": 32,
        "query_length": 24, "passage_length": 96,
    },
}  # fmt: skip

_ONE_MINED = {"negatives_per_positive": 1, "in_batch": "none"}
_NONE_MINED = {"negatives": 0, "negatives_per_positive": 0}

BASELINES: dict[str, dict[str, Any]] = {
    # the paper's arms (Sec. 5, Table 1), each with one negative a positive: what `--mix` draws
    # from, or the batch itself, for which nothing is mined
    "rand": {**_ONE_MINED, "mix": "random"},
    "rand-batch": {**_NONE_MINED, "in_batch": "random"},
    "nce": {**_NONE_MINED, "in_batch": "hardest"},
    "bm25": {**_ONE_MINED, "mix": "bm25", "depth": 100},
    "bm25+rand": {**_ONE_MINED, "mix": "bm25:0.5,random:0.5", "depth": 100},
    "ance": {**_ONE_MINED, "mix": "ann"},
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
