"""Low-rank adapters (LoRA; Hu et al., 2021) of a backbone, through peft."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from ance_cli.errors import BadInput, UsageProblem, as_bad_input

ALL_LINEAR = "all-linear"


def need_peft() -> None:
    """Raises `UsageProblem` if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UsageProblem(
            "adapters need peft, which is not installed", hint="pip install 'ance-cli[lora]'"
        )


def add_adapter(
    backbone: Any, rank: int, alpha: float, dropout: float, targets: str, seed: int
) -> None:
    """Add a LoRA adapter that alone is trained: W + (alpha / rank) B A on each target's weight.

    `targets`: names of linear maps, separated by commas, or `all-linear`. A is drawn by `seed`, B
    is 0, so that the first step begins with the base model's vectors.
    """
    import torch
    from peft import LoraConfig

    names: Any = targets if targets == ALL_LINEAR else targets.split(",")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names,  # type: ignore[arg-type]
        bias="none", task_type=None,
    )  # fmt: skip
    with as_bad_input(
        f"--lora-targets {targets}: cannot be adapted",
        hint=f"the linear maps are {', '.join(_linear_names(backbone))}; or use {ALL_LINEAR}",
    ):
        torch.manual_seed(seed)
        backbone.add_adapter(config)
    train_adapter(backbone)


def _linear_names(backbone: nn.Module) -> list[str]:
    named = backbone.named_modules()
    return sorted({name.split(".")[-1] for name, m in named if isinstance(m, nn.Linear)})


def train_adapter(backbone: nn.Module) -> None:
    """Train the weights of the adapter and no others."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_adapter(backbone: Any) -> None:
    """Add the adapters to the weights of their base, and remove them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    if not layers:
        raise BadInput("the adapter changes no layer of its base model")
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    backbone._hf_peft_config_loaded = False
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config
