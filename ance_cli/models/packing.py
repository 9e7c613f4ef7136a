"""Batches without padding: the tokens of all rows one after another, and attention within each row.

A GPU then computes nothing for padding, and needs no mask: transformers would look at a mask's
values, for which the host waits in every batch, and torch's flash kernels take none. The backbone
gets the rows' bounds as `cu_seq_lens_q`, as for transformers' own flattened batches. The token
vectors are padded again for the head, so that every pooling stays the library's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ance_cli.formats.tokens import TokenRows

_PACKED = "ance_packed"
_MODEL_TYPES = (
    "albert", "bert", "camembert", "distilbert", "electra", "gemma3_text", "gpt_neox", "gte",
    "llama", "mistral", "modernbert", "nomic_bert", "qwen2", "qwen3", "roberta", "xlm-roberta",
)  # fmt: skip
"""Families whose layers mix tokens by attention alone, without a bias for pairs of positions, and
that take positions: `tests/models/test_packing.py` compares each with its padded batches."""

_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8
"""Sizes of heads that flash attention takes: multiples up to the largest."""


class Packing(NamedTuple):
    """Where the T tokens of a packed batch belong, in B rows."""

    bounds: Tensor
    """(B + 1,) int32 the first token of each row, then T."""
    positions: Tensor
    """(T,) int64 the place of each token in its row."""
    places: Tensor
    """(T,) int64 the place of each token in the padded batch, row after row."""
    width: int
    """The length of the longest row."""

    @property
    def mask(self) -> Tensor:
        """(B, width) int64 mask of the padded batch."""
        columns = torch.arange(self.width, device=self.bounds.device)
        return (columns < self.bounds.diff()[:, None]).long()

    def padded(self, tokens: Tensor) -> Tensor:
        """(1, T, d) token vectors -> (B, width, d), 0 where there is no token."""
        rows, dim = len(self.bounds) - 1, tokens.shape[-1]
        room = tokens.new_zeros(rows * self.width, dim)
        return room.index_copy(0, self.places, tokens[0]).view(rows, self.width, dim)


def pack(
    rows: TokenRows, chosen: npt.NDArray[np.int64], to_device: Callable[[npt.NDArray[Any]], Tensor]
) -> tuple[Tensor, Packing]:
    """(1, T) int64 token ids of the chosen rows, and their packing, both on the device."""
    starts = rows.offsets[chosen]
    lengths = rows.offsets[chosen + 1] - starts
    bounds = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    width = int(lengths.max())
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    token_ids = rows.ids[np.repeat(starts, lengths) + positions].astype(np.int64)
    places = np.repeat(np.arange(len(chosen)) * width, lengths) + positions
    on_device = to_device(np.stack([token_ids, positions, places]))  # one copy
    return on_device[:1], Packing(to_device(bounds), on_device[1], on_device[2], width)


def features_of(packing: Packing, backbone: nn.Module) -> dict[str, Any]:
    """What a backbone that packs takes besides token ids."""
    return {
        "position_ids": (packing.positions + _first_position(backbone))[None],
        "cu_seq_lens_q": packing.bounds,
        "cu_seq_lens_k": packing.bounds,
        "max_length_q": packing.width,
        "max_length_k": packing.width,
    }


def _first_position(backbone: nn.Module) -> int:
    """RoBERTa's table of positions begins after that of padding."""
    config: Any = backbone.config
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return int(config.pad_token_id) + 1
    return 0


# ---------------------------------------------------------------- which encoders pack


def cannot_pack(
    backbone: nn.Module, device: torch.device, dtype: str, training: bool = False
) -> str | None:
    """Why batches are padded, in a few words; None if they can be packed.

    `dtype` is a resolved `--dtype`, in which attention computes.
    """
    config = getattr(backbone, "config", None)
    if config is None or config.model_type not in _MODEL_TYPES:
        return f"{getattr(config, 'model_type', 'a static table')} is not among the packed families"
    if device.type != "cuda":
        return "no GPU"
    if dtype == "fp32":
        return "flash attention takes no fp32"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash attention needs a GPU of compute capability 8.0"
    if not {"scale", "window_size"} <= _kernel_parameters():
        return f"torch {torch.__version__} has no variable-length attention with windows"
    width = head_width(backbone)
    if width % _HEAD_MULTIPLE or width > _LARGEST_HEAD:
        return f"flash attention takes no heads of {width}"
    if training and (dropout := attention_dropout(backbone)):
        return f"variable-length attention has no dropout, and the model's is {dropout:g}"
    return None


def head_width(backbone: nn.Module) -> int:
    """The dimensions of one attention head."""
    config: Any = backbone.config
    named = getattr(config, "head_dim", None)
    return int(named or config.hidden_size // config.num_attention_heads)


def attention_dropout(backbone: nn.Module) -> float:
    """The largest probability with which attention weights are dropped in training."""
    found = [0.0]
    for module in backbone.modules():
        if type(module).__name__.endswith("Attention"):
            for name in ("attention_dropout", "dropout"):
                value = getattr(module, name, 0.0)
                found.append(value.p if isinstance(value, nn.Dropout) else float(value))
    return max(found)


def use_packing(backbone: nn.Module) -> None:
    """Make a backbone attend within the rows of packed batches; it takes no others then.

    No mask function is registered for the name, so that transformers makes none.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_PACKED, attend)
    backbone.set_attn_implementation(_PACKED)  # type: ignore[operator]


# ---------------------------------------------------------------- attention


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T scaling) v within each row, as transformers' attention functions are called.

    q (1, H, T, D), k and v with as many heads or fewer, shared by groups of H. A causal module sees
    no later token; a window of w sees w - 1 tokens on each side that it sees. Returns (1, T, H, D).
    """
    if dropout:
        raise RuntimeError("packed batches have no dropout in attention")
    assert cu_seq_lens_q is not None and max_length_q is not None, "the batch is not packed"
    causal = bool(module.is_causal if is_causal is None else is_causal)
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if causal else reach)
    q, k, v = (part[0].transpose(0, 1).to(value.dtype) for part in (query, key, value))  # (T, H, D)
    kernel = _flash if q.is_cuda else _row_by_row
    return kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)[None], None


@cache
def _kernel_parameters() -> set[str]:
    """Those of torch's variable-length attention; empty if this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return set()
    return set(inspect.signature(varlen_attn).parameters)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, width: int, scale: float | None,
    window: tuple[int, int],
) -> Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    groups = q.shape[1] // k.shape[1]
    shared: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in _kernel_parameters():
        shared["enable_gqa"] = True
    elif groups > 1:
        k, v = (part.repeat_interleave(groups, 1) for part in (k, v))
    found = varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), bounds, bounds, width, width,
        scale=scale, window_size=window, **shared,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


def _row_by_row(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, width: int, scale: float | None,
    window: tuple[int, int],
) -> Tensor:  # fmt: skip
    """The reference: the same attention for one row after another."""
    groups = q.shape[1] // k.shape[1]
    distance = torch.arange(width)[None] - torch.arange(width)[:, None]  # key - query
    before, after = (side if side >= 0 else width for side in window)
    seen = (distance >= -before) & (distance <= after)
    found = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q_row, k_row, v_row = (part[start:end].transpose(0, 1) for part in (q, k, v))
        scored = nn.functional.scaled_dot_product_attention(
            q_row, k_row.repeat_interleave(groups, 0), v_row.repeat_interleave(groups, 0),
            attn_mask=seen[: end - start, : end - start], scale=scale,
        )  # fmt: skip
        found.append(scored.transpose(0, 1))
    return torch.cat(found)
