import math
import shutil
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
    T5Config,
    T5ForConditionalGeneration,
)

from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.flops import (
    matmul_ceiling,
    products_of,
    products_of_tower,
    training_flops,
)
from tests.world import make_tokenizer


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


def t5(_):
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("model", [bert, distilbert, modernbert, t5])
def test_the_products_of_a_tower_are_counted_without_loading_it(model, backbone, tmp_path):
    """Also where the file holds a decoder, or a head, that an encoder does without."""
    loaded = model(backbone)
    folder = shutil.copytree(backbone, tmp_path / "encoder")
    for path in (folder / "config.json", folder / "model.safetensors"):
        path.unlink()
    loaded.save_pretrained(folder)
    encoder = loaded.get_encoder() if model is t5 else loaded
    assert products_of_tower(Checkpoint(folder).tower("query")) == products_of(encoder)


def test_the_products_of_a_static_embedding(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    table = StaticEmbedding(make_tokenizer().backend_tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[table]).save(str(tmp_path / "static"))
    found = products_of_tower(Checkpoint(tmp_path / "static").tower("query"))
    assert found == products_of(table.embedding) and found.forward_flops(5, 25) == 2 * 8 * 5


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
