"""Gradient caching: the gradient of the whole batch, in as many calls on every rank."""

import numpy as np
import pytest
import torch
from torch import nn

from ance_cli.formats.tokens import TokenRows
from ance_cli.training.distributed import World
from ance_cli.training.grad_cache import GradCacheStep

ROWS = TokenRows(np.arange(40, dtype=np.int32), np.arange(0, 41, 4), np.ones(10, np.int32))


class Mean(nn.Module):
    """An encoder of both sides that notes which of them each call with gradients encodes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, 3)
        self.calls = []

    def forward(self, query_ids, query_mask, passage_ids, passage_mask):
        if torch.is_grad_enabled():
            self.calls.append((query_ids is not None, passage_ids is not None))
        return tuple(
            None if ids is None else (self.table(ids) * mask.unsqueeze(-1)).sum(1)
            for ids, mask in ((query_ids, query_mask), (passage_ids, passage_mask))
        )


def step(chunk, queries, passages, most):
    """The loss, the gradient and the calls of one rank's part of a batch."""
    torch.manual_seed(1)
    model = Mean()
    cached = GradCacheStep(model, World(torch.device("cpu")), ROWS, ROWS, (0, 0), "fp32", chunk)

    def loss_of(q, d):
        return (q @ d[:passages].T).square().mean()

    rows = np.arange(queries), np.arange(10 - passages, 10)
    return cached.backward(*rows, most, loss_of, True, 5), model.table.weight.grad, model.calls


@pytest.mark.parametrize(("queries", "passages"), [(4, 7), (4, 1), (3, 2)])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_rank_with_few_rows_makes_as_many_calls_as_one_with_many(queries, passages, chunk):
    loss, gradient, calls = step(chunk, queries, passages, (queries, 8))
    expected, whole, once = step(0, queries, passages, (queries, 8))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6) and once == [(True, True)]
    torch.testing.assert_close(gradient, whole)
    num_calls = [-(-most // chunk) for most in (queries, 8)]
    assert [sum(call[side] for call in calls) for side in (0, 1)] == num_calls
    assert calls[-1] == (True, True)
