"""Attention for encoders on a CPU, where torch's fused kernel is slow in bf16.

For the head sizes of BERT-like encoders its forward pass reaches a tenth of the machine's bf16
matrix-product rate, and its backward pass takes two to four times as long as in float32
(docs/evidence/measurements.md). Inference uses batched matrix products, which run near that rate.
Training would have to keep their scores, so it uses the fused kernel in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_PRODUCTS, _FLOAT32 = "ance_products", "ance_float32"
_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "electra", "camembert")
"""Encoders whose attention is softmax(q k / sqrt(d)) v over the unmasked keys, and nothing else."""

_SCORES_AT_A_TIME = 1 << 21
"""Attention scores in a piece: as many as fit in the cache, so that memory does not slow the
softmax down."""


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

    q, k, v (B, H, L, D); the mask (B, L) selects the first keys of each row; None: all keys.
    Returns (B, L, H, D).
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
            if end < length:  # rare and short in sorted rows: cheaper than adding a mask
                scores_of_row[:, :, int(end) :] = -torch.inf
        torch.bmm(torch.softmax(scores, -1), v[piece], out=found[piece])
    return found.view(rows, heads, length, width).transpose(1, 2), None


def _keys_that_are_there(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """The mask for `attend`, as transformers' mask functions are called."""
    return attention_mask


def attend_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, None]:
    """torch's fused attention on float32 copies of q, k, v (B, H, L, D); returns (B, L, H, D) in
    their own type. The other arguments are those of transformers' `sdpa_attention_forward`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), *rest, **options
        )
    return found.to(query.dtype), None


def use_products(backbone: nn.Module) -> None:
    """Make a backbone use `attend`, for inference only, if its type is in `_MODEL_TYPES`."""
    _use(backbone, _PRODUCTS, attend, _keys_that_are_there)


def use_float32(backbone: nn.Module) -> None:
    """Make a backbone use `attend_in_float32`, if its type is in `_MODEL_TYPES`."""
    from transformers.masking_utils import sdpa_mask

    _use(backbone, _FLOAT32, attend_in_float32, sdpa_mask)


def _use(backbone: nn.Module, name: str, how: Callable[..., Any], mask: Callable[..., Any]) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    config = getattr(backbone, "config", None)  # a StaticEmbedding's table has none
    if config is not None and str(config.model_type) in _MODEL_TYPES:
        AttentionInterface.register(name, how)
        AttentionMaskInterface.register(name, mask)
        backbone.set_attn_implementation(name)  # type: ignore[operator]
