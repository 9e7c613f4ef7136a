"""Where an encoder's parameters are: which are frozen, and how fast the others learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ance_cli.errors import UsageProblem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ance_cli.models.dual import DualEncoder

_BACKBONE = ".chain.0.model."
"""In the name of a parameter: between a tower and what is inside its transformers model."""

_AFTER_THE_LAYERS = {"final_norm", "final_layer_norm", "norm", "pooler"}
"""Names in transformers of the modules above the last layer of a backbone."""


@dataclass(frozen=True)
class Place:
    """The place of a parameter in a tower of `num_layers` layers.

    `layer` counts from 0; it is -1 for the embeddings, and `num_layers` above the last layer. A
    parameter outside the backbone is `in_head`.
    """

    layer: int
    num_layers: int
    in_head: bool = False


def places(named_parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[Tensor, Place]]:
    """Each parameter of an encoder with its place, in the same order.

    The layer's index is the first number in the name after the backbone's; the part before that is
    the name of a tower, and each tower has its own depth.
    """
    split = [(parameter, *f".{name}".partition(_BACKBONE)) for name, parameter in named_parameters]
    num_layers: dict[str, int] = {}
    for _, tower, _, below in split:
        num_layers[tower] = max(num_layers.get(tower, 0), _number(below) + 1)
    found = []
    for parameter, tower, backbone, below in split:
        depth = num_layers[tower]
        parts = set(below.split("."))
        layer = _number(below)
        if not backbone or (layer < 0 and parts & _AFTER_THE_LAYERS and "embeddings" not in parts):
            layer = depth
        found.append((parameter, Place(layer, depth, in_head=not backbone)))
    return found


def _number(below: str) -> int:
    """The first number in a name; -1 if it has none."""
    return next((int(part) for part in below.split(".") if part.isdecimal()), -1)


def freeze_layers(dual: DualEncoder, count: int) -> None:
    """Stop the training of the embeddings and the first `count` layers of each trained tower; 0
    freezes nothing.

    Raises `UsageProblem` if a tower has fewer layers, or if nothing is left to train.
    """
    if not count:
        return
    trained = [each for each in dual.named_parameters() if each[1].requires_grad]
    for parameter, place in places(trained):
        if place.num_layers < count and not place.in_head:
            raise UsageProblem(
                f"--freeze-layers {count}: the encoder has {place.num_layers} layers",
                hint=f"use --freeze-layers {place.num_layers} or less",
            )
        if place.layer < count and not place.in_head:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in dual.parameters()):
        raise UsageProblem(
            f"--freeze-layers {count} leaves nothing to train: no head has weights",
            hint=f"use --freeze-layers {count - 1} or less",
        )


def rate_factors(model: nn.Module, decay: float) -> list[tuple[Tensor, float]]:
    """Each trained parameter with the factor on its learning rate: layer-wise decay (Clark et al.,
    2020, App. B; Bao et al., 2022, App. D).

    Layer l of L, counted from 0, has decay^(L - l), the embeddings decay^(L + 1), and everything
    above the last layer 1.
    """
    trained = [each for each in model.named_parameters() if each[1].requires_grad]
    return [(p, decay ** (place.num_layers - place.layer)) for p, place in places(trained)]
