"""True gradients of single negatives, against a plain loop of autograd."""

import numpy as np
import pytest
import torch

from ance_cli.diagnostics.examples import ExampleGradients
from ance_cli.diagnostics.pair import ORACLE, Draws
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
    head = torch.cat([p.grad.flatten() for name, p in named if ".head." in name])
    return torch.cat([p.grad.flatten() for _, p in named]).double().numpy(), head


@pytest.mark.parametrize("towers", ["checkpoint", "two_towers"])
def test_norms_and_moments_against_a_plain_loop(request, towers):
    checkpoint = Checkpoint(request.getfixturevalue(towers))
    draws = {
        "rand": Draws(np.array([4, 9, 4, 7]), np.array([1.0, 1.0, 1.0, 1.0])),
        ORACLE: Draws(np.array([7, 7, 9, 7]), np.array([0.6, 0.6, 2.5, 0.6])),
    }
    examples = ExampleGradients(checkpoint, torch.device("cpu"), "nll", 1.0, 1.0)
    found = examples.of(QUERY, POSITIVE, NEGATIVES, draws)
    gradients = {}
    for doc, text in NEGATIVES.items():
        gradients[doc], head = flat_gradient(checkpoint, text)
        assert found.norms[doc]["all"] == pytest.approx(np.linalg.norm(gradients[doc]), rel=2e-3)
        assert found.norms[doc]["head"] == pytest.approx(float(head.norm()), rel=2e-3)
    assert examples.num_parameters == len(gradients[4])
    of = {kind: np.array([w * gradients[d] for d, w in zip(drawn.docs, drawn.weights, strict=True)])
          for kind, drawn in draws.items()}  # fmt: skip

    def between_draws(g):
        return sum(g[i] @ g[j] for i in range(4) for j in range(4) if i != j) / 12

    whole = between_draws(of[ORACLE])
    assert found.mean == pytest.approx(whole, rel=1e-2)
    for kind, g in of.items():
        variance = np.square(g - g.mean(0)).sum() / 3
        bias = between_draws(g) - 2 * g.mean(0) @ of[ORACLE].mean(0) + whole
        assert found.moments[kind].variance == pytest.approx(variance, rel=1e-2)
        assert found.moments[kind].mean == pytest.approx(between_draws(g), rel=1e-2)
        expected = 0.0 if kind == ORACLE else bias
        assert found.moments[kind].bias == pytest.approx(expected, rel=2e-2, abs=1e-2 * abs(whole))
