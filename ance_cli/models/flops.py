"""How much of the machine a training step uses.

Model FLOPs utilisation (Chowdhery et al., 2022, App. B) = `training_flops` / seconds /
`matmul_ceiling`. The ceiling is measured on the machine itself; it is not a vendor's figure.
"""

from __future__ import annotations

import math
import re
import time
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from ance_cli.errors import as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN
from ance_cli.models.devices import torch_dtype
from ance_cli.models.encoder import hidden_size
from ance_cli.models.tower import Tower


class Products(NamedTuple):
    """What decides the matrix products of a transformer encoder.

    This assumes that every layer attends to the whole row and has weights of its own (unlike
    ALBERT).
    """

    weights: int
    """Of the linear maps that each token goes through."""
    layers: int
    """0 if it is not known, as that of a checkpoint's own code."""
    width: int

    def forward_flops(self, num_tokens: int, sum_squares: int) -> int:
        """FLOPs of a forward pass.

        `num_tokens` is the sum of the rows' lengths and `sum_squares` the sum of their squares,
        both including padding, which is computed as well. FLOPs = 2 P tokens + 4 layers hidden
        sum(length^2): the first term are the P weights of the linear maps (one multiplication and
        one addition each per token), the second term are the products of queries with keys and of
        attention weights with values.
        """
        attention = 4 * self.layers * self.width * sum_squares
        return int(2 * self.weights * num_tokens + attention)

    def training_flops(self, num_tokens: int, sum_squares: int, frozen_layers: int = 0) -> int:
        """FLOPs of a forward and a backward pass: the backward pass has two products for each
        product of the forward pass. Recomputed activations do not count.

        It ends above the first `frozen_layers` layers. The gradient of the input of the layer above
        them counts, although it is not needed.
        """
        trained = 1 - frozen_layers / max(1, self.layers)
        return int((1 + 2 * trained) * self.forward_flops(num_tokens, sum_squares))


def products_of(backbone: nn.Module) -> Products:
    """Those of a loaded backbone."""
    if isinstance(backbone, nn.EmbeddingBag):
        return Products(backbone.embedding_dim, 0, backbone.embedding_dim)
    weights = sum(
        module.weight.numel()
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler")  # not one per token
    )
    config: Any = backbone.config
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0))
    return Products(weights, layers, hidden_size(backbone))


def forward_flops(backbone: nn.Module, num_tokens: int, sum_squares: int) -> int:
    """`Products.forward_flops` of a loaded backbone."""
    return products_of(backbone).forward_flops(num_tokens, sum_squares)


def training_flops(
    backbone: nn.Module, num_tokens: int, sum_squares: int, frozen_layers: int = 0
) -> int:
    """`Products.training_flops` of a loaded backbone."""
    return products_of(backbone).training_flops(num_tokens, sum_squares, frozen_layers)


_NOT_FOR_EACH_TOKEN = re.compile(
    r"embed|pooler|classifier|lm_head|relative_attention|(^|\.)wte\.|(^|\.)wpe\.|"
    r"^(cls|shared|decoder)\."
)
"""Names of matrices that are looked up in, or belong to another model in the same file."""


def products_of_tower(tower: Tower) -> Products:
    """Those of a tower whose weights are not loaded, by the names and the shapes in its files."""
    if tower.is_static:
        return Products(tower.dim, 0, tower.dim)
    weights = 0
    for path in sorted((tower.base or tower.backbone).glob("*.safetensors")):
        with (
            as_bad_input(f"{path}: not a whole safetensors file", hint=COPY_AGAIN),
            safe_open(path, framework="numpy") as found,
        ):
            for name in found.keys():  # noqa: SIM118
                shape = found.get_slice(name).get_shape()
                if len(shape) == 2 and not _NOT_FOR_EACH_TOKEN.search(name):
                    weights += math.prod(shape)
    return Products(weights, tower.num_layers, tower.width)


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
