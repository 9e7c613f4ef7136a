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
from ance_cli.training.sharding import whole


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
        """One update of every parameter that has a gradient.

        A group's tensors are computed together: one by one, a GPU would wait for the launches.
        """
        loss = closure() if closure else None
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            m: list[Tensor] = [self.state[p]["exp_avg"] for p in params]
            v: list[Tensor] = [self.state[p]["exp_avg_sq"] for p in params]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(m, grads, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
            updates = torch._foreach_sqrt(v)
            torch._foreach_add_(updates, group["eps"])
            torch._foreach_reciprocal_(updates)
            torch._foreach_mul_(updates, m)
            if group["weight_decay"]:
                torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            weight_norms, update_norms = (
                torch.stack([whole(norm) for norm in torch._foreach_norm(tensors)])
                for tensors in (params, updates)
            )
            weight_norms.clamp_(max=10)
            has_both = (weight_norms > 0) & (update_norms > 0)
            rates = group["lr"] * torch.where(has_both, weight_norms / update_norms, 1.0)
            for p, update, rate in zip(params, updates, rates.unbind(), strict=True):
                p.sub_(update.mul_(rate))
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
