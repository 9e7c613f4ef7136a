"""How much of the machine a training step uses.

Model FLOPs utilisation (Chowdhery et al., 2022, App. B) = `training_flops` / seconds /
`matmul_ceiling`. The ceiling is measured on the machine itself; it is not a vendor's figure.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from ance_cli.models.devices import torch_dtype
from ance_cli.models.encoder import hidden_size


def forward_flops(backbone: nn.Module, num_tokens: int, sum_squares: int) -> int:
    """FLOPs of a forward pass of a transformer encoder's matrix products.

    `num_tokens` is the sum of the rows' lengths and `sum_squares` the sum of their squares, both
    including padding, which is computed as well. FLOPs = 2 P tokens + 4 layers hidden
    sum(length^2): the first term are the P weights of the linear maps (one multiplication and one
    addition each per token), the second term are the products of queries with keys and of attention
    weights with values. This assumes that every layer attends to the whole row and has weights of
    its own (unlike ALBERT).
    """
    if isinstance(backbone, nn.EmbeddingBag):
        return 2 * backbone.embedding_dim * num_tokens
    weights = sum(
        module.weight.numel()
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler")  # not one per token
    )
    attention = 4 * _num_layers(backbone) * hidden_size(backbone) * sum_squares
    return int(2 * weights * num_tokens + attention)


def _num_layers(backbone: nn.Module) -> int:
    """The number of layers; 0 if the config does not say it, as that of a checkpoint's own code."""
    if isinstance(backbone, nn.EmbeddingBag):
        return 0
    config: Any = backbone.config
    return int(getattr(config.get_text_config(), "num_hidden_layers", 0))


def training_flops(
    backbone: nn.Module, num_tokens: int, sum_squares: int, frozen_layers: int = 0
) -> int:
    """FLOPs of a forward and a backward pass: the backward pass has two products for each product
    of the forward pass. Recomputed activations do not count.

    It ends above the first `frozen_layers` layers. The gradient of the input of the layer above
    them counts, although it is not needed.
    """
    trained = 1 - frozen_layers / max(1, _num_layers(backbone))
    return int((1 + 2 * trained) * forward_flops(backbone, num_tokens, sum_squares))


def matmul_ceiling(device: torch.device, dtype: str, seconds: float = 0.3) -> float:
    """The FLOP/s of a large square matrix product, with the current threads and settings.

    `dtype` is a resolved `--dtype`. After one product to warm up, measures products for `seconds`,
    at least three, and returns the speed of the fastest: that of an undisturbed machine.
    """
    size = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(
        size, size, device=device, dtype=torch_dtype(dtype), generator=generator
    )  # a GPU runs faster on zeros than on numbers
    product = torch.empty_like(matrix)

    def timed() -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()
    end = time.perf_counter() + seconds
    times = [timed() for _ in range(3)]
    while time.perf_counter() < end:
        times.append(timed())
    return float(2 * size**3 / min(times))
