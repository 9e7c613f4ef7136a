"""How fast this machine trains: measured with some steps of the model, or reckoned without it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ance_cli.models.devices import choose_devices, training_dtype
from ance_cli.models.flops import matmul_ceiling
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent
from ance_cli.training.distributed import World
from ance_cli.training.grad_cache import GradCacheStep
from ance_cli.training.run_creation import first_model
from ance_cli.training.sizing import Workload

_PART_OF_CEILING = 0.5
"""What encoders reach of the rate of a large matrix product, about (docs/evidence)."""
_LONG_ENOUGH = 1.0
"""Seconds of a step that is measured, unless a whole batch takes less."""


class Rate(NamedTuple):
    """FLOP/s of one device in training, and where the number comes from."""

    flops_per_s: float
    basis: str

    def minutes(self, flops: float, devices: int) -> float:
        """The time that so much work takes on so many devices."""
        return round(flops / (self.flops_per_s * devices) / 60, 1)


def reckoned_rate(gpus: str, dtype: str) -> Rate:
    """The rate by that of a large matrix product, which takes half a second to measure."""
    device = choose_devices(gpus)[0]
    ceiling = matmul_ceiling(device, training_dtype(dtype, device))
    basis = (
        f"reckoned, at {_PART_OF_CEILING:.0%} of the {ceiling / 1e9:,.0f} GFLOP/s of a large "
        f"matrix product on {device.type}"
    )
    return Rate(_PART_OF_CEILING * ceiling, basis)


def measured_rate(work: Workload, gpus: str) -> Rate:
    """The rate in forward and backward passes of the run's own model on the sample's texts.

    The first pass, of one pair, warms up; each one after it has twice as many pairs, until one is
    long enough to measure or has a whole batch.
    """
    device = choose_devices(gpus)[0]
    dtype = training_dtype(work.config.dtype, device)
    step = _step(work, World(device), dtype)
    pairs, seconds = 1, 0.0
    _seconds(step, work, pairs)
    while seconds < _LONG_ENOUGH and pairs <= work.config.batch_size:
        step.computed = step.squares = 0
        seconds = _seconds(step, work, pairs)
        pairs *= 2
    rate = work.products.training_flops(step.computed, step.squares) / seconds
    basis = f"measured in training steps on {device.type}, {rate / 1e9:,.0f} GFLOP/s"
    return Rate(rate, basis)


def _step(work: Workload, world: World, dtype: str) -> GradCacheStep:
    from ance_cli.models.attention import use_float32
    from ance_cli.models.encoder import set_dropout

    dual: Any = first_model(work.start, work.config, Silent())[0]
    if world.device.type == "cpu":
        for tower in (dual.query, dual.passage):
            use_float32(tower.backbone)
    if work.config.dropout is not None:
        set_dropout(dual, work.config.dropout)
    dual.to(world.device).train()
    pad_id = Tokenizer(work.start).pad_id_of
    rows = work.rows
    return GradCacheStep(
        dual, world, rows["query"], rows["passage"], (pad_id("query"), pad_id("passage")), dtype
    )


def _seconds(step: GradCacheStep, work: Workload, pairs: int) -> float:
    """The seconds of a forward and a backward pass."""
    queries = np.resize(np.arange(step.queries.num_rows), pairs)
    passages = np.resize(np.arange(step.passages.num_rows), pairs * work.passages_per_pair)

    def loss_of(q: Tensor, d: Tensor | None) -> Tensor:
        assert d is not None
        return (q @ d.T).logsumexp(1).mean()

    started = time.perf_counter()
    float(step.backward(queries, passages, (len(queries), len(passages)), loss_of, True, seed=0))
    return time.perf_counter() - started
