import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from ance_cli.config import TrainConfig
from ance_cli.config.sets import OptimizerName
from ance_cli.training.optim import Lamb, make_optimizer, set_learning_rate


def lamb_twin(weights, gradients, lr, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """LAMB without bias correction, one scalar at a time."""
    m, v = [0.0] * len(weights), [0.0] * len(weights)
    weights = list(weights)
    for gradient in gradients:
        update = []
        for place, g in enumerate(gradient):
            m[place] = beta1 * m[place] + (1 - beta1) * g
            v[place] = beta2 * v[place] + (1 - beta2) * g * g
            update.append(m[place] / (math.sqrt(v[place]) + eps) + decay * weights[place])
        norm = min(math.sqrt(sum(w * w for w in weights)), 10.0)
        size = math.sqrt(sum(u * u for u in update))
        ratio = norm / size if norm > 0 and size > 0 else 1.0
        weights = [w - lr * ratio * u for w, u in zip(weights, update, strict=True)]
    return weights


@pytest.mark.parametrize("scale", [1.0, 100.0])  # the second has a weight norm beyond the clamp
def test_lamb_against_a_scalar_twin(scale):
    rng = np.random.default_rng(1)
    start = rng.normal(size=6) * scale
    gradients = rng.normal(size=(5, 6))
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = Lamb([{"params": [p]}], lr=0.03, weight_decay=0.1)
    for gradient in gradients:
        p.grad = torch.tensor(gradient)
        optimizer.step()
    expected = lamb_twin(start, gradients, 0.03, 0.1)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)


def test_lamb_moves_a_zero_tensor():
    p = nn.Parameter(torch.zeros(3))
    optimizer = Lamb([{"params": [p]}], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    assert (p < 0).all()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name == "adamw-8bit"))
        for name in get_args(OptimizerName)
    ],
)
def test_biases_and_norms_are_not_decayed(name):
    model = nn.ModuleDict({"dense": nn.Linear(2, 2), "LayerNorm": nn.LayerNorm(2)})
    config = TrainConfig(optimizer=name, weight_decay=0.5)
    groups = make_optimizer(model, config).param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [len(group["params"]) for group in groups] == [1, 3]


@pytest.mark.long  # where torchao is installed, every process imports it
def test_8_bit_moments_change_the_steps_little():
    found = {}
    start = torch.linspace(-1, 1, 64 * 128).view(64, 128)
    for name in ("adamw", "adamw-8bit"):
        model = nn.ModuleDict({"dense": nn.Linear(128, 64)})
        weight, generator = model["dense"].weight, torch.Generator().manual_seed(1)
        with torch.no_grad():
            weight.copy_(start)
        optimizer = make_optimizer(model, TrainConfig(optimizer=name))
        for _ in range(10):
            weight.grad = torch.randn(weight.shape, generator=generator)
            set_learning_rate(optimizer, 1e-2)
            optimizer.step()
        found[name] = weight.detach()
    moments = [optimizer.state[weight][name] for name in ("exp_avg", "exp_avg_sq")]
    assert [moment.codes.dtype for moment in moments] == [torch.uint8, torch.uint8]
    moved = (found["adamw"] - start).abs().mean()
    assert 0 < (found["adamw-8bit"] - found["adamw"]).abs().mean() < 0.05 * moved
