import math

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import Start, start_dual
from ance_cli.training.gradients import GROUPS, group_norms, layer_groups

SMALL = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
MODELS = {
    "bert": lambda n: BertModel(BertConfig(**SMALL, num_hidden_layers=n)),
    "roberta": lambda n: RobertaModel(RobertaConfig(**SMALL, num_hidden_layers=n)),
    "mpnet": lambda n: MPNetModel(MPNetConfig(**SMALL, num_hidden_layers=n)),
    "distilbert": lambda n: DistilBertModel(
        DistilBertConfig(vocab_size=9, dim=8, n_layers=n, n_heads=2, hidden_dim=12)
    ),
    "modernbert": lambda n: ModernBertModel(
        ModernBertConfig(**SMALL, num_hidden_layers=n, pad_token_id=0)
    ),
}
LAYERS = {"distilbert": "transformer.layer.", "modernbert": "layers."}


def groups_by_name(named_parameters):
    named = list(named_parameters)
    name_of = {id(parameter): name for name, parameter in named}
    groups = layer_groups(named)
    assert list(groups) == list(GROUPS)
    found = {name_of[id(p)]: group for group in groups for p in groups[group]}
    assert len(found) == len(named) == sum(map(len, groups.values()))
    return found


@pytest.mark.parametrize("tower", ["", "query.", "module.shared."])
@pytest.mark.parametrize("model", MODELS)
def test_thirds_of_the_layers(model, tower):
    backbone = MODELS[model](12)
    named = [(f"{tower}chain.0.model.{name}", p) for name, p in backbone.named_parameters()]
    named.append((f"{tower}chain.2.linear.weight", torch.zeros(1)))
    prefix = f"{tower}chain.0.model.{LAYERS.get(model, 'encoder.layer.')}"
    for name, group in groups_by_name(named).items():
        if name.startswith(prefix):
            layer = int(name.removeprefix(prefix).split(".")[0])
            assert group == GROUPS[layer // 4], name
        elif ".linear." in name:
            assert group == "head"
        else:
            above = "pooler" in name or "final_norm" in name
            assert group == ("top" if above else "bottom"), name


@pytest.mark.parametrize(
    "num_layers,expected",
    [
        (1, ["middle"]),
        (2, ["bottom", "top"]),
        (3, ["bottom", "middle", "top"]),
        (4, ["bottom", "middle", "middle", "top"]),
        (6, ["bottom"] * 2 + ["middle"] * 2 + ["top"] * 2),
    ],
)
def test_few_layers(num_layers, expected):
    named = [(f"chain.0.model.layers.{n}.weight", torch.zeros(1)) for n in range(num_layers)]
    assert list(groups_by_name(named).values()) == expected


def test_towers_of_different_depth():
    named = [(f"query.chain.0.model.layers.{n}.weight", torch.zeros(1)) for n in range(3)]
    named += [(f"passage.chain.0.model.layers.{n}.weight", torch.zeros(1)) for n in range(6)]
    found = groups_by_name(named)
    assert found["query.chain.0.model.layers.2.weight"] == "top"
    assert found["passage.chain.0.model.layers.2.weight"] == "middle"


def test_norms_against_a_plain_loop(backbone):
    encoder = start_dual(Checkpoint(backbone), Start(head="paper", seed=1))[0].query
    token_ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    encoder(token_ids, (token_ids > 0).long()).square().sum().backward()
    squares = dict.fromkeys(GROUPS, 0.0)
    for name, parameter in encoder.named_parameters():
        if not name.startswith("chain.0."):
            group = "head"
        elif ".layer.1." in name:
            group = "top"
        else:
            group = "bottom"
        squares[group] += sum(float(g) ** 2 for g in parameter.grad.flatten())
    found = group_norms(layer_groups(encoder.named_parameters()))
    assert found["middle"] == 0.0 and all(found[group] > 0 for group in ("bottom", "top", "head"))
    assert found == pytest.approx({g: math.sqrt(s) for g, s in squares.items()}, rel=1e-5)


def test_groups_without_gradients_have_norm_zero():
    frozen, trained = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    trained.grad = torch.tensor([3.0, 4.0])
    found = group_norms({"bottom": [frozen], "middle": [], "top": [frozen, trained]})
    assert found == {"bottom": 0.0, "middle": 0.0, "top": 5.0}
