"""True gradients of single negatives, against a plain loop of autograd."""

import numpy as np
import pytest
import torch

from ance_cli.diagnostics.corpus_scores import PairLoss
from ance_cli.diagnostics.examples import ExampleGradients
from ance_cli.diagnostics.pair import Draws, OracleDraws
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import load_dual
from ance_cli.models.tokens import Tokenizer

QUERY, POSITIVE = "river word3", "river 3 the old river word3"
NEGATIVES = {4: "comet 5 a new comet", 7: "river 11 found a small river", 9: "bread is old"}


def flat_gradient(checkpoint, negative):
    """The gradient of log(1 + exp(s- - s+)) over all parameters, one text at a time."""
    dual, tokenizer = load_dual(checkpoint), Tokenizer(checkpoint)

    def encoded(text, side):
        rows = tokenizer([text], side)
        ids = torch.tensor(rows.ids.astype(np.int64)).unsqueeze(0)
        return (dual.query if side == "query" else dual.passage)(ids, torch.ones_like(ids))[0]

    q = encoded(QUERY, "query")
    loss = torch.log1p(
        torch.exp(q @ encoded(negative, "passage") - q @ encoded(POSITIVE, "passage"))
    )
    loss.backward()
    named = [(name, p) for name, p in dual.named_parameters() if p.requires_grad]
    head = torch.cat([p.grad.flatten() for name, p in named if ".chain.0." not in name])
    return torch.cat([p.grad.flatten() for _, p in named]).double().numpy(), head


@pytest.mark.parametrize("towers", ["checkpoint", "two_towers"])
def test_norms_and_moments_against_a_plain_loop(request, towers):
    checkpoint = Checkpoint(request.getfixturevalue(towers))
    draws = Draws(np.array([7, 7, 9, 4]), np.array([0.6, 0.6, 2.5, 0.9]))
    densities = {"whole": np.array([1.5, 1.5, 0.5, 1.0]), "some": np.array([2.0, 2.0, 0.0, 3.0])}
    examples = ExampleGradients(checkpoint, torch.device("cpu"), PairLoss("nll", 1.0, 1.0))
    found = examples.of(QUERY, POSITIVE, NEGATIVES, OracleDraws(draws, densities))
    gradients = {}
    for doc, text in NEGATIVES.items():
        gradients[doc], head = flat_gradient(checkpoint, text)
        assert found.norms[doc]["all"] == pytest.approx(np.linalg.norm(gradients[doc]), rel=2e-3)
        assert found.norms[doc]["head"] == pytest.approx(float(head.norm()), rel=2e-3)
    assert examples.num_parameters == len(gradients[4])

    def between_draws(g):
        return sum(g[i] @ g[j] for i in range(4) for j in range(4) if i != j) / 12

    weighted = np.array([w * gradients[d] for d, w in zip(draws.docs, draws.weights, strict=True)])
    scale = np.square(weighted).sum() / 12
    assert found.mean == pytest.approx(between_draws(weighted), abs=1e-2 * scale)
    for kind, density in densities.items():
        inside = weighted * (density > 0)[:, None]
        mean, bias = between_draws(inside), between_draws(weighted - inside)
        second = sum(
            np.square(gradients[d]).sum() * w / p / 4
            for d, w, p in zip(draws.docs, draws.weights, density, strict=True) if p > 0
        )  # fmt: skip
        expected = [second - mean, bias, mean]
        assert list(found.moments[kind]) == pytest.approx(expected, abs=1e-2 * scale), kind
    assert found.moments["whole"].bias == 0
