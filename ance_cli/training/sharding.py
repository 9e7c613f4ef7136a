"""Sharded training: each rank keeps its part of every weight, gradient and moment (FSDP; Zhao et
al., 2023), so that a model may be larger than the memory of one device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from ance_cli.models.devices import torch_dtype
from ance_cli.models.dual import DualEncoder
from ance_cli.models.encoder import Encoder
from ance_cli.training.distributed import World


def shard(dual: DualEncoder, world: World, dtype: str) -> None:
    """Leave this rank's part of the float32 weights on its device; every rank must call this.

    A layer's whole weights exist only while it computes, in `dtype`. What is outside of the
    backbones computes in float32. Gradients are averaged over the ranks in float32, in every
    backward pass.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch_dtype(dtype), reduce_dtype=torch.float32)
    for tower in dual.towers.values():
        first = cast(Encoder, tower).chain[0]
        backbone = cast(Encoder, tower).backbone
        for part in (*_layers_of(backbone), backbone):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        if known := getattr(first, "modality_config", None):  # the library calls this method
            register_fsdp_forward_method(backbone, known["text"]["method"])
    fully_shard(dual, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called."""
    return isinstance(model, FSDPModule)


def _layers_of(backbone: nn.Module) -> list[nn.Module]:
    """The layers of a backbone: its longest list of modules."""
    lists = [list(module) for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all ranks; every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, in the CPU's memory those that were sharded; nothing unless `keep`.

    Every rank must call this.
    """
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if keep:
            found[name] = gathered if gathered is tensor else gathered.cpu()
    return found


def divided(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor as `like` is: this rank's part of it if `like` is sharded."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def outline_of(dual: DualEncoder) -> DualEncoder:
    """A copy of the encoders whose weights take no memory."""
    empty = {
        id(weights): nn.Parameter(weights.detach().to("meta"), weights.requires_grad)
        for weights in dual.parameters()
    }
    return copy.deepcopy(dual, empty)


def whole_encoder(dual: DualEncoder, outline: DualEncoder | None, keep: bool) -> DualEncoder | None:
    """The encoders with whole weights, to be saved; None unless `keep`. Every rank must call this.

    `outline` is that of the encoders before they were sharded, None if they are not.
    """
    if outline is None:
        return dual if keep else None
    weights = whole_tensors(dual.state_dict(), keep)
    if not keep:
        return None
    found = copy.deepcopy(outline)
    found.load_state_dict(weights, assign=True)
    return found
