"""Linear maps for inference on a CPU, whose weights are laid out once for its matrix products.

A plain bf16 linear map lays its weights out again in every call, which costs an encoder about a
tenth of its time (docs/evidence/measurements.md). The results are bit-identical.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """x W^T + b in bf16; W is in oneDNN's own layout, which only this module can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = linear.bias
        self.weight = torch.empty_like(linear.weight, device="meta")
        """Only its shape and type, which T5's layers read."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self._bias, "none", [], "none"
        )
        return found


def _can_pack() -> bool:
    operators = torch.ops.mkldnn
    wanted = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(operators, name) for name in wanted) and bool(
        operators._is_mkldnn_bf16_supported()
    )


def pack_linears(module: nn.Module) -> None:
    """Replace the bf16 linear maps inside a module, for inference only, if oneDNN supports it.

    torch's own compiler uses the same operators; a torch without them keeps its plain linear maps.
    """
    if not _can_pack():
        return
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and child.weight.dtype is torch.bfloat16:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)
