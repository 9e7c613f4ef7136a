"""Gradient norms by depth: the paper's figure of bottom, middle and top layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.nn.utils import get_total_norm

from ance_cli.training.layers import Place, places
from ance_cli.training.sharding import whole

GROUPS = ("bottom", "middle", "top", "head")


def layer_groups(named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Sort the parameters of an encoder into the thirds of its backbone's layers and the head.

    A layer belongs to the third that contains its middle; of two layers, the last is the top. The
    embeddings belong to the bottom, a norm after the last layer to the top, and every parameter
    outside the backbone to the head.
    """
    groups: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for parameter, place in places(named_parameters):
        groups[_group(place)].append(parameter)
    return groups


def _group(place: Place) -> str:
    if place.in_head:
        return "head"
    if place.layer < 0:
        return "bottom"
    if place.layer == place.num_layers:
        return "top"
    return GROUPS[3 * (2 * place.layer + 1) // (2 * place.num_layers)]


def group_norms(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """L2 norm of the gradients of each group; 0.0 if a group has none.

    Every rank must call this.
    """
    return {
        group: float(whole(get_total_norm([p.grad for p in parameters if p.grad is not None])))
        for group, parameters in groups.items()
    }
