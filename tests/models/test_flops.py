import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
)

from ance_cli.models.flops import matmul_ceiling, training_flops


def bert(folder):
    return AutoModel.from_pretrained(folder, add_pooling_layer=False)


def distilbert(_):
    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=24)
    return DistilBertModel(config)


def modernbert(_):
    config = ModernBertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, pad_token_id=0,
    )  # fmt: skip
    return ModernBertModel(config)


@pytest.mark.parametrize("model", [bert, distilbert, modernbert])
def test_flops_are_those_that_torch_counts(model, backbone):
    """To the last one: torch counts matrix products and nothing else, as we do.

    With eager attention, as torch does not count what its fused kernel on a CPU does.
    """
    encoder = model(backbone)
    encoder.set_attn_implementation("eager")
    shapes = [(4, 24), (3, 7)]  # rows and their padded length
    with FlopCounterMode(display=False) as counter:
        for shape in shapes:
            token_ids = torch.randint(5, 50, shape)
            hidden = encoder(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
            hidden.last_hidden_state[:, 0].sum().backward()
    num_tokens = sum(rows * length for rows, length in shapes)
    sum_squares = sum(rows * length**2 for rows, length in shapes)
    assert training_flops(encoder, num_tokens, sum_squares) == counter.get_total_flops()


def test_frozen_layers_have_no_backward_pass(backbone):
    encoder = bert(backbone)
    encoder.set_attn_implementation("eager")
    for part in (encoder.embeddings, encoder.encoder.layer[0]):
        part.requires_grad_(False)
    token_ids = torch.randint(5, 50, (4, 24))
    with FlopCounterMode(display=False) as counter:
        encoder(input_ids=token_ids).last_hidden_state[:, 0].sum().backward()
    to_query_key_value = 2 * 3 * encoder.config.hidden_size**2 * token_ids.numel()
    counted = training_flops(encoder, token_ids.numel(), 4 * 24**2, frozen_layers=1)
    assert counted == counter.get_total_flops() + to_query_key_value


def test_a_pooler_that_sees_one_token_of_a_row_does_not_count(backbone):
    encoder = AutoModel.from_pretrained(backbone, add_pooling_layer=True)
    assert hasattr(encoder, "pooler")
    assert training_flops(encoder, 96, 2304) == training_flops(bert(backbone), 96, 2304) > 0


def test_the_ceiling_of_a_cpu():
    state = torch.get_rng_state()
    ceiling = matmul_ceiling(torch.device("cpu"), "fp32", seconds=0.0)
    assert math.isfinite(ceiling) and ceiling > 0
    assert torch.equal(torch.get_rng_state(), state), "training draws from this generator"


@pytest.mark.parametrize("seconds,durations", [(0.0, [4, 2, 3]), (12.0, [4, 3, 4, 2])])
def test_the_ceiling_is_the_best_product_of_the_time_given(seconds, durations, monkeypatch):
    """With a clock that only the products advance; the warm-up is the shortest, and not counted."""
    now, left = 0.0, [1, *durations]

    def product(a, b, out):
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    found = matmul_ceiling(torch.device("cpu"), "fp32", seconds)
    assert found == 2 * 2048**3 / 2
    assert not left


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_ceiling_of_a_gpu(dtype):
    assert 1e11 < matmul_ceiling(torch.device("cuda"), dtype) < 1e17
