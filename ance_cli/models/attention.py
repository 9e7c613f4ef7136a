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
"""Encoders whose attention is softmax(q k / sqrt(d)) v over the keys there are, nothing else."""

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
    """softmax(q k^T scaling) v, as transformers' attention functions are called.

    q, k, v (B, H, L, D); the mask (B, L) says which keys are there, the first of each row; None is
    all of them. Returns (B, L, H, D).
    """
    rows, heads, length, width = query.shape
    lengths = [length] * rows if attention_mask is None else attention_mask.sum(1).tolist()
    step = max(1, _SCORES_AT_A_TIME // (heads * length * length))  # rows of the batch in a piece
    q, k, v = (part.reshape(rows * heads, length, width) for part in (query * scaling, key, value))
    found = torch.empty_like(q)
    for row in range(0, rows, step):
        piece = slice(row * heads, min(row + step, rows) * heads)
        scores = torch.bmm(q[piece], k[piece].transpose(1, 2))  # (step * H, L, L)
        for scores_of_row, end in zip(
            scores.view(-1, heads, length, length), lengths[row : row + step], strict=True
        ):
            if end < length:  # of sorted rows few, by few tokens: cheaper than to add a mask
                scores_of_row[:, :, int(end) :] = -torch.inf
        torch.bmm(torch.softmax(scores, -1), v[piece], out=found[piece])
    return found.view(rows, heads, length, width).transpose(1, 2), None


def _keys_that_are_there(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """The mask for `attend`, as transformers' mask functions are called."""
    return attention_mask


def use_products(backbone: nn.Module) -> None:
    """Have a backbone attend by `attend`, for inference only, if it is of a kind that can."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    if str(backbone.config.model_type) in _MODEL_TYPES:  # type: ignore[union-attr]
        AttentionInterface.register(_NAME, attend)
        AttentionMaskInterface.register(_NAME, _keys_that_are_there)
        backbone.set_attn_implementation(_NAME)  # type: ignore[operator]
