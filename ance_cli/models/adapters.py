"""Low-rank adapters (LoRA; Hu et al., 2021) of a Transformer, through peft.

An adapter is trained and saved as a `PeftModel`; to encode, it is merged into its base once.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ance_cli.config.training import ALL_LINEAR
from ance_cli.errors import BadInput, UsageProblem, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN


def need_peft() -> None:
    """Raises `UsageProblem` if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UsageProblem(
            "adapters need peft, which is not installed", hint="pip install 'ance-cli[lora]'"
        )


def add_adapter(
    first: Any, rank: int, alpha: float, dropout: float, targets: str, seed: int
) -> None:
    """Give a Transformer module an adapter, which alone is trained: each target's weight becomes
    W + (alpha / rank) B A (Hu et al., 2021, Eq. 3).

    `targets`: names of linear maps, separated by commas, or `all-linear`. A is drawn by `seed`, and
    B is 0, so that the first vectors are those of the base model.
    """
    need_peft()
    from peft import LoraConfig, get_peft_model

    names: Any = targets if targets == ALL_LINEAR else targets.split(",")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)  # type: ignore[arg-type]
    found = {name.split(".")[-1] for name, m in first.model.named_modules()
             if isinstance(m, nn.Linear)}  # fmt: skip
    with (
        _without_warnings(),
        as_bad_input(
            f"--lora-targets {targets}: the backbone has no such linear map",
            hint=f"use {ALL_LINEAR}, or some of {','.join(sorted(found))}",
        ),
    ):
        torch.manual_seed(seed)
        first.model = get_peft_model(first.model, config)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """peft warns of names in transformers that are about to change, which no user can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load_adapter(first: Any, folder: Path, shown: Path) -> None:
    """Turn a Transformer, which the library loaded with its adapter, into one that trains it."""
    from peft import PeftModel

    _remove_adapter(first.model, shown, merge=False)
    with _without_warnings(), as_bad_input(f"{shown}: the adapter does not load", hint=COPY_AGAIN):
        first.model = PeftModel.from_pretrained(first.model, str(folder), is_trainable=True)


def merge_adapter(first: Any, shown: Path) -> None:
    """Add the adapter of a Transformer, which the library loaded, to the weights of its base."""
    _remove_adapter(first.model, shown, merge=True)


def _remove_adapter(backbone: Any, shown: Path, merge: bool) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        (name, layer)
        for name, layer in backbone.named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    if not layers:
        raise BadInput(f"{shown}: the adapter changes no layer of its base", hint=COPY_AGAIN)
    for name, layer in layers:
        if merge:
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    backbone._hf_peft_config_loaded = False
    del backbone.peft_config
    # transformers would give the weights the adapter's names again when it saves them
    backbone._weight_conversions = [
        each
        for each in getattr(backbone, "_weight_conversions", None) or []
        if not any("lora_" in name or "base_model" in name for name in each.source_patterns)
    ]
