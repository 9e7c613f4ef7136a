"""From the vectors of a batch to its loss: which documents a query meets, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ance_cli.config import TrainConfig
from ance_cli.training.loss import DISTILLATIONS, LOSSES, with_batch_negatives


@dataclass(frozen=True)
class LossInputs:
    """What some queries of a batch meet, as tensors on the device (see `Batch`).

    `members` alone where negatives are neither taken from the batch nor taught.
    """

    members: Tensor
    teacher: Tensor | None = None
    banned: Tensor | None = None
    picks: Tensor | None = None


def batch_loss(
    scores: Tensor, loss_inputs: LossInputs, config: TrainConfig, scale: float
) -> Tensor:
    """The mean loss of the queries.

    `scores` (B, D) of each query with each document of the batch, before `scale`. The loss is
    (1 - w) * l + w * distillation with w = `distill_weight`; the distillation sees a pair's own
    members only, since only they have a teacher's score.
    """
    scores = scores * scale
    total = scores.new_zeros(())
    if not config.distill or config.distill_weight < 1:
        banned = (
            torch.zeros_like(scores, dtype=torch.bool)
            if loss_inputs.banned is None
            else loss_inputs.banned
        )
        seen = with_batch_negatives(
            scores, loss_inputs.members, banned, config.in_batch, loss_inputs.picks
        )
        total = LOSSES[config.loss](seen, config.margin)
    if config.distill and loss_inputs.teacher is not None:
        own = torch.gather(scores, 1, loss_inputs.members)
        taught = DISTILLATIONS[config.distill](own, loss_inputs.teacher)
        total = (1 - config.distill_weight) * total + config.distill_weight * taught
    return total
