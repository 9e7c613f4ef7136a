"""The learning rate of each step: a linear warm-up, then a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from ance_cli.config import TrainConfig
from ance_cli.config.sets import Schedule


def linear(left: float) -> float:
    """In proportion to the steps that are left."""
    return left


def cosine(left: float) -> float:
    """Half a cosine: slow, then fast, then slow again."""
    return 0.5 * (1 - math.cos(math.pi * left))


def constant(left: float) -> float:
    """No decay."""
    return 1.0


SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
}
"""schedule(left) by name: the factor on the peak learning rate, with the fraction `left` of the
steps after the warm-up still to be done (1 = all, 0 = none)."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0)."""
    if step < config.warmup_steps:
        return config.lr * ((step + 1) / config.warmup_steps)
    if config.total_steps <= config.warmup_steps:
        return config.lr
    left = (config.total_steps - step) / (config.total_steps - config.warmup_steps)
    return config.lr * SCHEDULES[config.schedule](max(0.0, left))


def ends(config: TrainConfig) -> bool:
    """Whether the learning rate reaches 0 at `total_steps`."""
    return SCHEDULES[config.schedule](0.0) == 0.0
