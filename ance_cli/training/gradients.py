"""Gradient norms by depth: the paper's figure of bottom, middle and top layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.nn.utils import get_total_norm

GROUPS = ("bottom", "middle", "top", "head")

_AFTER_THE_LAYERS = ("final_norm", "norm", "pooler")
"""Names in transformers of the modules above the last layer of a backbone."""


def layer_groups(named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Sort the parameters of an encoder into the thirds of its backbone's layers and the head.

    A layer belongs to the third that contains its middle; of two layers, the last is the top. The
    embeddings belong to the bottom, a norm after the last layer to the top, and every parameter
    outside the backbone to the head. The layer's index is the first number in the name after
    `chain.0.model`, the backbone; the part before it is the name of a tower, and each tower has its
    own depth.
    """
    places = [(*_place(name), parameter) for name, parameter in named_parameters]
    num_layers: dict[str, int] = {}
    for tower, layer, _, _ in places:
        if layer is not None:
            num_layers[tower] = max(num_layers.get(tower, 0), layer + 1)
    groups: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for tower, layer, group, parameter in places:
        if layer is not None:
            group = GROUPS[3 * (2 * layer + 1) // (2 * num_layers[tower])]
        groups[group].append(parameter)
    return groups


def _place(name: str) -> tuple[str, int | None, str]:
    """Tower, layer (None outside the layers) and the group of a parameter outside them."""
    tower, backbone, below = f".{name}".partition(".chain.0.model.")
    if not backbone:
        return "", None, "head"
    parts = below.split(".")
    layer = next((int(part) for part in parts if part.isdecimal()), None)
    return tower, layer, "top" if parts[0] in _AFTER_THE_LAYERS else "bottom"


def group_norms(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """L2 norm of the gradients of each group; 0.0 if a group has none."""
    return {
        group: float(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        for group, parameters in groups.items()
    }
