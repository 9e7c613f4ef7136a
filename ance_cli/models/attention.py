"""Attention for encoders on a CPU, out of batched matrix products.

torch's fused kernel for CPUs reaches a tenth of the machine's bf16 matrix-product rate for the
head sizes of BERT-like encoders (docs/performance.md); the products themselves run near that rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NAME = "ance_products"
_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "electra", "camembert")
"""Encoders whose attention is softmax(q k / sqrt(d) + mask) v and nothing else."""

_SCORES_AT_A_TIME = 1 << 21
"""Attention scores in a piece: what the cache holds, so that memory does not slow the softmax."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T scaling + mask) v, as transformers' attention functions are called.

    q, k, v (B, H, L, D); the mask (B, 1, L, L) is added to the scores. Returns (B, L, H, D).
    """
    rows, heads, length, width = query.shape
    step = max(1, _SCORES_AT_A_TIME // (heads * length * length))  # rows of the batch in a piece
    q, k, v = (part.reshape(rows * heads, length, width) for part in (query * scaling, key, value))
    found = torch.empty_like(q)
    for row in range(0, rows, step):
        piece = slice(row * heads, min(row + step, rows) * heads)
        scores = torch.bmm(q[piece], k[piece].transpose(1, 2))  # (step * H, L, L)
        if attention_mask is not None:
            scores.view(-1, heads, length, length).add_(attention_mask[row : row + step])
        torch.bmm(torch.softmax(scores, -1), v[piece], out=found[piece])
    return found.view(rows, heads, length, width).transpose(1, 2), None


def use_products(backbone: nn.Module) -> None:
    """Have a backbone attend by `attend`, for inference only, if it is of a kind that can."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    if str(backbone.config.model_type) in _MODEL_TYPES:  # type: ignore[union-attr]
        AttentionInterface.register(_NAME, attend)
        AttentionMaskInterface.register(_NAME, eager_mask)
        backbone.set_attn_implementation(_NAME)  # type: ignore[operator]
