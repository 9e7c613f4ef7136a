"""Which parameters are frozen, and how fast the others learn. Places: see `test_gradients.py`."""

import pytest
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5EncoderModel,
)

from ance_cli.errors import UsageProblem
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import freeze_passages, load_dual
from ance_cli.training.layers import freeze_layers, rate_factors

SMALL = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12,
         "num_hidden_layers": 3}  # fmt: skip
MODELS = {
    "bert": (lambda: BertModel(BertConfig(**SMALL), add_pooling_layer=False), "encoder.layer"),
    "modernbert": (lambda: ModernBertModel(ModernBertConfig(**SMALL, pad_token_id=0)), "layers"),
    "t5": (
        lambda: T5EncoderModel(
            T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=12, num_layers=3, num_heads=2)
        ),
        "encoder.block",
    ),
}
BACKBONE = "chain.0.model."
FINAL_NORMS = (f"{BACKBONE}final_norm.", f"{BACKBONE}encoder.final_layer_norm.")


def tower(backbone):
    first = nn.ModuleDict({"model": backbone})
    return nn.ModuleDict({"chain": nn.ModuleList([first, nn.Linear(8, 8)])})


@pytest.mark.parametrize("kind", MODELS)
def test_rates_decay_from_the_head_down_to_the_embeddings(kind):
    make, layers = MODELS[kind]
    model = tower(make())
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: factor for p, factor in rate_factors(model, 0.5)}
    assert found.keys() == set(names.values())
    for name, factor in found.items():
        if name.startswith(f"{BACKBONE}{layers}."):
            layer = int(name.removeprefix(f"{BACKBONE}{layers}.").split(".")[0])
            assert factor == 0.5 ** (3 - layer), name
        elif name.startswith(("chain.1.", *FINAL_NORMS)):
            assert factor == 1.0, name
        else:
            assert factor == 0.5**4, name


def test_towers_of_different_depth_decay_from_their_own_top():
    towers = {}
    for name, depth in (("query", 2), ("passage", 3)):
        config = BertConfig(**{**SMALL, "num_hidden_layers": depth})
        towers[name] = tower(BertModel(config, add_pooling_layer=False))
    model = nn.ModuleDict(towers)
    factor_of = {id(p): factor for p, factor in rate_factors(model, 0.5)}
    for name, depth in (("query", 2), ("passage", 3)):
        embeddings = model[name]["chain"][0]["model"].embeddings.word_embeddings.weight
        assert factor_of[id(embeddings)] == 0.5 ** (depth + 1)


def test_without_decay_every_rate_is_the_same(checkpoint):
    assert {factor for _, factor in rate_factors(load_dual(Checkpoint(checkpoint)), 1.0)} == {1.0}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_lowest_layers_of_both_towers_are_frozen(two_towers, count):
    dual = load_dual(Checkpoint(two_towers))
    freeze_layers(dual, count)
    for name, p in dual.named_parameters():
        below = any(f".layer.{n}." in name for n in range(count))
        assert p.requires_grad != (below or (count > 0 and "embeddings" in name)), name


def test_a_tower_that_is_not_trained_is_left_alone(two_towers):
    dual = freeze_passages(load_dual(Checkpoint(two_towers)))
    freeze_layers(dual, 1)
    assert not any(p.requires_grad for p in dual.passage.parameters())
    assert any(p.requires_grad for p in dual.query.parameters())


def test_more_layers_than_there_are(checkpoint):
    with pytest.raises(UsageProblem, match="--freeze-layers 3: the encoder has 2 layers"):
        freeze_layers(load_dual(Checkpoint(checkpoint)), 3)


def test_a_model_without_a_head_must_keep_a_layer(checkpoint):
    dual = load_dual(Checkpoint(checkpoint))
    del dual.query.chain[2:]
    with pytest.raises(UsageProblem, match="leaves nothing to train") as found:
        freeze_layers(dual, 2)
    assert found.value.hint == "use --freeze-layers 1 or less"
