import math

import numpy as np
import pytest
import torch

from ance_cli.training.loss import nll, pair_scores


def test_nll_against_the_formula():
    scores = np.random.default_rng(0).normal(size=(4, 6)) * 3
    expected = np.mean([-math.log(math.exp(row[0]) / sum(map(math.exp, row))) for row in scores])
    assert float(nll(torch.tensor(scores))) == pytest.approx(expected, rel=1e-12)


def test_nll_of_one_negative_is_the_logistic_loss_of_the_margin():
    value = float(nll(torch.tensor([[2.0, 0.5]], dtype=torch.float64)))
    assert value == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)


def test_pair_scores_take_the_best_segment():
    rng = np.random.default_rng(2)
    queries, rows = rng.normal(size=(3, 4)), rng.normal(size=(7, 4))
    rows_of = np.array(
        [[[0, 1, -1], [2, -1, -1]], [[3, 4, 5], [6, -1, -1]], [[2, 6, -1], [0, 1, 5]]]
    )
    found = pair_scores(torch.tensor(queries), torch.tensor(rows), torch.tensor(rows_of))
    for b in range(3):
        for n in range(2):
            expected = max(queries[b] @ rows[r] for r in rows_of[b, n] if r >= 0)
            assert float(found[b, n]) == pytest.approx(expected, rel=1e-12)


def test_missing_segments_have_no_gradient():
    rows = torch.randn(3, 4, requires_grad=True)
    rows_of = torch.tensor([[[1, -1], [2, -1]]])
    nll(pair_scores(torch.randn(1, 4), rows, rows_of)).backward()
    assert rows.grad is not None
    assert not rows.grad[0].any() and rows.grad[1].any()
