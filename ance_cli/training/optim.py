"""Optimizers: AdamW from torch, with 8-bit moments from torchao, and LAMB as the paper's released
code runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ance_cli.config.sets import OptimizerName
from ance_cli.config.training import RecipeConfig
from ance_cli.training.layers import rate_factors


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020), with the choices of the ANCE release: no bias correction, weight
    decay added to the update, weight norm clamped to [0, 10].

    p <- p - lr * r * u, with u = m / (sqrt(v) + eps) + decay * p and the trust ratio
    r = min(|p|, 10) / |u|, or 1 if either norm is 0.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                m: Tensor = state["exp_avg"].lerp_(p.grad, 1 - beta1)
                v: Tensor = (
                    state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                )
                update = m / (v.sqrt() + group["eps"])
                if group["weight_decay"]:
                    update.add_(p, alpha=group["weight_decay"])
                weight_norm = p.norm().clamp(0, 10)
                update_norm = update.norm()
                ratio = torch.where(
                    (weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0
                )
                p.sub_(group["lr"] * ratio * update)
        return loss


Group = dict[str, Any]
Groups = list[Group]
"""Parameter groups, as every optimizer of torch takes them."""


def adamw(groups: Groups, lr: float) -> torch.optim.Optimizer:
    """torch's AdamW in its fused form."""
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def adamw_8bit(groups: Groups, lr: float) -> torch.optim.Optimizer:
    """torchao's AdamW, whose moments have 8 bits in blocks of 256 numbers with a scale each
    (Dettmers et al., 2022).

    Tensors of fewer than 4096 numbers, or of no whole number of blocks, keep 32 bits. The step is
    compiled on a GPU, where its intermediate tensors would take much memory, and not on a CPU,
    where it would need a C++ compiler.
    """
    from torchao.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=lr)
    if all(p.device.type == "cpu" for group in groups for p in group["params"]):
        eager = torch.compiler.set_stance("force_eager")
        optimizer.step = eager(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def lamb(groups: Groups, lr: float) -> torch.optim.Optimizer:
    """`Lamb` with its defaults."""
    return Lamb(groups, lr=lr)


OPTIMIZERS: dict[OptimizerName, Callable[[Groups, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
    "lamb": lamb,
}
"""optimizer(parameter groups, learning rate) by name."""


def make_optimizer(model: nn.Module, config: RecipeConfig) -> torch.optim.Optimizer:
    """An optimizer of the parameters that are trained, without weight decay on biases and norms
    (tensors of one dimension).

    Each group has the `factor` of its parameters on the learning rate.
    """
    groups: dict[tuple[bool, float], Group] = {}
    rates = rate_factors(model, config.layer_decay)
    for p, factor in sorted(rates, key=lambda rate: rate[0].ndim <= 1):
        decay = config.weight_decay if p.ndim > 1 else 0.0
        empty: Group = {"params": [], "weight_decay": decay, "factor": factor}
        groups.setdefault((p.ndim > 1, factor), empty)["params"].append(p)
    return OPTIMIZERS[config.optimizer](list(groups.values()), config.lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its share of the learning rate."""
    for group in optimizer.param_groups:
        rate = lr * group["factor"]
        if isinstance(group["lr"], Tensor):  # torchao's, so that a new rate compiles nothing again
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
