"""What training a large encoder takes of a device's memory, and on which device it fits.

    python benchmarks/memory.py --tokens 16384

This is arithmetic on the shapes of the models, not a measurement: the table says what cannot fit,
and what is likely to. `--tokens` are those that a device encodes at a time (with --grad-cache, in a
chunk), with --gradient-checkpointing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModel, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

GIB = 2**30
CAPACITIES = (24, 48, 80)
DEVICES = (1, 8)
RANK = 16
RESERVED = 1.5 * GIB
"""Of a device: the driver, the kernels, and what the allocator cannot use. A rough figure."""

Recipe = Literal["adamw", "adamw-8bit", "lora"]

HEAD_DIM = 128
SHAPES: dict[str, PretrainedConfig] = {
    "Qwen3-Embedding-0.6B": Qwen3Config(
        vocab_size=151669, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=HEAD_DIM, intermediate_size=3072),
    "gte-Qwen2-1.5B": Qwen2Config(
        vocab_size=151646, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, intermediate_size=8960),
    "Qwen3-Embedding-4B": Qwen3Config(
        vocab_size=151665, hidden_size=2560, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=HEAD_DIM, intermediate_size=9728),
    "e5-mistral-7b": MistralConfig(
        vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=HEAD_DIM, intermediate_size=14336),
}  # fmt: skip
"""The published configs, as far as they say how many numbers there are."""


class Need(NamedTuple):
    """Bytes on each device. `copies`: of the weights in bf16, and of the gradients on their way."""

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float

    @property
    def all(self) -> float:
        return sum(self) + RESERVED


def model_of(config: PretrainedConfig) -> nn.Module:
    """The backbone, without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(config)
        return model


def adapter_of(model: nn.Module) -> list[Tensor]:
    """The two matrices that LoRA adds to each linear map."""
    return [
        torch.empty(shape, device="meta")
        for each in model.modules()
        if isinstance(each, nn.Linear)
        for shape in ((RANK, each.in_features), (each.out_features, RANK))
    ]


def count(tensors: Iterable[Tensor]) -> int:
    """Numbers in some tensors."""
    return sum(tensor.numel() for tensor in tensors)


def moment_bytes(weights: Tensor, recipe: Recipe) -> int:
    """Of both moments of AdamW and its count of steps.

    In 8 bits: a byte for each number, a float32 for each block of 256 and a map of 256 numbers;
    tensors of fewer than 4096 numbers, or of no whole number of blocks, stay in float32.
    """
    size = weights.numel()
    if recipe == "adamw-8bit" and size >= 4096 and size % 256 == 0:
        return 2 * (size + 4 * size // 256 + 4 * 256) + 4
    return 2 * 4 * size + 4


def layer_bytes(config: Any, half: bool) -> int:
    """What the backward pass of one layer needs of each token: the outputs of its parts.

    `half`: all in bf16; otherwise what lies between the layers, and the norms, are in float32, as
    autocast has them. Attention keeps no scores, and a norm also keeps its input in float32.
    """
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    q, kv = heads * config.num_attention_heads, heads * config.num_key_value_heads
    norms = 6 * (q + kv) if config.model_type == "qwen3" else 0
    hidden = (16 if half else 26) * config.hidden_size
    return 8 * config.intermediate_size + hidden + 4 * q + 4 * kv + norms


def need_of(model: nn.Module, recipe: Recipe, tokens: int, devices: int) -> Need:
    """The memory that `recipe` takes of each of some devices that divide the model.

    Full training keeps float32 weights and computes in bf16. LoRA keeps the weights in bf16 and its
    adapter in float32.
    """
    config: Any = model.config
    weights = list(model.parameters())
    trained = adapter_of(model) if recipe == "lora" else weights
    base = 2 * count(weights) + 4 * count(trained) if recipe == "lora" else 4 * count(weights)
    linear = [each.weight for each in model.modules() if isinstance(each, nn.Linear)]
    cast = trained if recipe == "lora" else linear
    layers = next(each for each in model.modules() if isinstance(each, nn.ModuleList))
    outside = count(weights) - count(layers.parameters())
    if devices > 1:  # whole weights in bf16, gradients in bf16 and, on their way, in float32
        per_number = 2 if recipe == "lora" else 8
        copies = per_number * max(2 * count(layers[0].parameters()), outside)
    else:
        copies = 2 * count(cast)  # autocast keeps them for a pass
    half = devices > 1 or recipe == "lora"
    between = (2 if half else 4) * config.hidden_size * config.num_hidden_layers
    inside = layer_bytes(config, half) + 6 * config.intermediate_size  # and gradients of the widest
    return Need(
        base / devices,
        4 * count(trained) / devices,
        sum(moment_bytes(each, recipe) for each in trained) / devices,
        copies,
        tokens * (between + inside),
    )


def table(tokens: int) -> str:
    """Markdown: a line for each model, recipe and number of devices."""
    head = ["model", "trained", "devices", "weights", "gradients", "optimizer", "copies",
            "activations", "all", *(f"left of {size}" for size in CAPACITIES)]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for name, config in SHAPES.items():
        model = model_of(config)
        for recipe in get_args(Recipe):
            for devices in DEVICES:
                if recipe == "adamw-8bit" and devices > 1:
                    continue  # --shard full refuses it
                need = need_of(model, recipe, tokens, devices)
                left = [size - need.all / GIB for size in CAPACITIES]
                lines.append(
                    [name, recipe, str(devices), *(f"{part / GIB:.1f}" for part in need),
                     f"{need.all / GIB:.1f}",
                     *("no" if each < 0 else f"{each:.1f}" for each in left)]
                )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16_384)
    options = parser.parse_args()
    print(
        f"Arithmetic, not a measurement. GiB on each device, for {options.tokens:,} tokens at a "
        f"time with gradient checkpointing; {RESERVED / GIB} GiB are set aside for the driver and "
        f"the allocator. LoRA has rank {RANK} on every linear map.\n"
    )
    print(table(options.tokens))


if __name__ == "__main__":
    main()
