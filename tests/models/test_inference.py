"""The engine: batches, attention, masks, and what it does when memory runs out."""

from contextlib import nullcontext
from typing import get_args

import numpy as np
import pytest
import torch

from ance_cli.config import ComputeConfig
from ance_cli.config.sets import PoolingName
from ance_cli.errors import ResourceExhausted
from ance_cli.models import attention, linear
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import Start, start_dual
from ance_cli.models.encoder import Encoder, load_encoder
from ance_cli.models.inference import InferenceEngine, batches_by_length, fit_to_cpu
from ance_cli.models.tokens import Tokenizer
from tests.families import FAMILIES

CPU = torch.device("cpu")
TEXTS = [" ".join(["river", "old", "granite"] * length) for length in (1, 2, 2, 3, 5, 5, 7)]


@pytest.fixture
def rows(checkpoint):
    return Tokenizer(Checkpoint(checkpoint))(TEXTS, "passage")


def engine(checkpoint, batch_tokens=4096, **options):
    config = ComputeConfig(dtype="fp32", batch_tokens=batch_tokens)
    return InferenceEngine(load_encoder(Checkpoint(checkpoint)), 0, [CPU], config, **options)


@pytest.mark.parametrize("pieces", [1, 1 << 21])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_formula(monkeypatch, pieces, masked):
    monkeypatch.setattr(attention, "_SCORES_AT_A_TIME", pieces)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 5, 2, 7, 4, generator=generator).unbind(0)
    mask = None
    if masked:
        mask = torch.ones(5, 7, dtype=torch.bool)
        mask[1, 4:] = False
    found, _ = attention.attend(torch.nn.Identity(), q, k, v, mask, 0.5)
    for row in range(5):
        for head in range(2):
            scores = q[row, head] @ k[row, head].T * 0.5
            if masked:
                scores[:, ~mask[row]] = -torch.inf
            expected = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True) @ v[row, head]
            torch.testing.assert_close(found[row, :, head], expected)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
@pytest.mark.parametrize(
    ("use", "name"), [("use_products", "ance_products"), ("use_float32", "ance_float32")]
)
def test_each_kind_of_encoder_keeps_its_vectors(kind, use, name):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=40, embedding_size=32,
    )  # fmt: skip
    backbone = getattr(transformers, f"{kind}Model")(config).eval()
    ids = torch.randint(5, 90, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.inference_mode():
        expected = [backbone(ids, m).last_hidden_state for m in (mask, None)]
        getattr(attention, use)(backbone)
        assert backbone.config._attn_implementation == name
        found = [backbone(ids, m).last_hidden_state for m in (mask, None)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[mask.bool()], other[mask.bool()], atol=1e-5, rtol=1e-4)


def test_a_t5_encoder_that_is_fit_to_the_cpu_keeps_its_vectors():
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    backbone = T5EncoderModel(config).eval().to(torch.bfloat16)
    ids = torch.randint(5, 50, (3, 12))
    with torch.inference_mode():
        expected = backbone(ids).last_hidden_state
        fit_to_cpu(backbone)
        assert torch.equal(backbone(ids).last_hidden_state, expected)


def test_training_attends_in_float32_under_autocast():
    q, k, v = torch.randn(3, 2, 4, 64, 26, generator=torch.Generator().manual_seed(0)).unbind(0)
    q, k, v = (part.bfloat16().requires_grad_() for part in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention.attend_in_float32(
            torch.nn.Identity(), q, k, v, None, scaling=0.5, is_causal=False
        )
    assert found.dtype is torch.bfloat16
    exact = torch.softmax(q.double() @ k.double().transpose(2, 3) * 0.5, -1) @ v.double()
    # they differ by the last rounding, to 8 bits; the kernel's own bf16 is coarser
    torch.testing.assert_close(found.double(), exact.transpose(1, 2), rtol=2**-8, atol=1e-5)
    found.float().sum().backward()
    assert all(part.grad.dtype is torch.bfloat16 for part in (q, k, v))


def test_other_encoders_keep_their_own_attention():
    from transformers import DistilBertConfig, DistilBertModel

    backbone = DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=2))
    before = backbone.config._attn_implementation
    attention.use_products(backbone)
    assert backbone.config._attn_implementation == before


def test_a_batch_of_one_length_has_no_mask(checkpoint, rows, monkeypatch):
    seen = []
    real = Encoder.forward

    def watched(self, token_ids, mask):
        seen.append((tuple(token_ids.shape), mask is None))
        return real(self, token_ids, mask)

    monkeypatch.setattr(Encoder, "forward", watched)
    lengths = rows.lengths
    small = engine(checkpoint, batch_tokens=20).encode(rows)
    assert lengths.tolist() == [5, 8, 8, 11, 17, 17, 23]
    assert seen == [
        ((1, 23), True), ((1, 17), True), ((1, 17), True), ((1, 11), True), ((2, 8), True),
        ((1, 5), True),
    ]  # fmt: skip
    seen.clear()
    large = engine(checkpoint).encode(rows)
    assert seen == [((7, 23), False)]
    np.testing.assert_allclose(small, large, atol=1e-5)


@pytest.mark.parametrize("pooling", get_args(PoolingName))
def test_every_pooling_without_a_mask(backbone, pooling):
    encoder = start_dual(Checkpoint(backbone), Start(pooling=pooling))[0].query
    ids = torch.tensor([[2, 5, 7, 3], [2, 9, 8, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(encoder(ids, None), encoder(ids, torch.ones_like(ids)))


def test_a_static_table_without_a_mask_stays_on_its_device(tmp_path, monkeypatch):
    """The meta device adds nothing to a CPU's tensors, as a GPU does not."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    FAMILIES["static-embedding"](tmp_path)
    encoder = load_encoder(Checkpoint(tmp_path)).to("meta")
    ids = torch.ones((3, 4), dtype=torch.int64, device="meta")
    assert encoder(ids, None).shape == (3, encoder.dim)


def test_few_shapes_occur_however_many_blocks():
    """One for each width, but for the last batch of a block."""
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(20):
        lengths = rng.integers(3, 64, 3_000)
        batches = list(batches_by_length(lengths, 512, 1))
        shapes |= {(len(batch), int(lengths[batch[0]])) for batch in batches[:-1]}
    assert shapes <= {(512 // width, width) for width in range(3, 64)}


@pytest.mark.parametrize("batch_tokens", [512, 2_048, 24_576])
def test_a_block_of_passages_pads_less_than_three_per_cent(batch_tokens):
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(70), 0.38, 16_384)).astype(np.int64)
    batches = list(batches_by_length(lengths, batch_tokens, 1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded < 1.03 * lengths.sum()


def failing_above(monkeypatch, limit, error):
    """Encoders run out of memory for more than `limit` tokens; the sizes that were tried."""
    real, tried = Encoder.forward, []

    def forward(self, token_ids, mask):
        tried.append(tuple(token_ids.shape))
        if token_ids.numel() > limit:
            raise error
        return real(self, token_ids, mask)

    monkeypatch.setattr(Encoder, "forward", forward)
    return tried


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_batches_are_halved_from_then_on(
    checkpoint, rows, monkeypatch, error
):
    expected = engine(checkpoint).encode(rows)
    tried, said = failing_above(monkeypatch, 60, error), []
    small = engine(checkpoint, batch_tokens=23 * 7, say=said.append)
    np.testing.assert_allclose(small.encode(rows), expected, atol=1e-5)
    assert tried == [(7, 23), (4, 23), (2, 23), (2, 17), (3, 8)]
    assert said == ["memory ran out: continuing with batches of 46 tokens (--batch-tokens)"]
    tried.clear()
    np.testing.assert_allclose(small.encode(rows), expected, atol=1e-5)
    assert max(rows * width for rows, width in tried) <= 60 and len(said) == 1


def test_one_sequence_that_does_not_fit_ends_it(checkpoint, rows, monkeypatch):
    failing_above(monkeypatch, 0, OUT_OF_MEMORY[0])
    with pytest.raises(ResourceExhausted, match="one sequence of 23 tokens does not fit in memory"):
        engine(checkpoint).encode(rows)


def test_another_error_is_not_taken_for_it(checkpoint, rows, monkeypatch):
    failing_above(monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine(checkpoint).encode(rows)


def test_who_listens_hears_of_every_row_and_token(checkpoint, rows):
    heard, batches = [], []
    engine(checkpoint, batch_tokens=40).encode(
        rows, heard.append, lambda batch, size: batches.append((rows.lengths[batch], size))
    )
    assert sum(heard) == rows.num_rows == sum(len(lengths) for lengths, _ in batches)
    for lengths, size in batches:
        assert size.tokens == len(lengths) * lengths.max() >= lengths.sum()
        assert size.squares == len(lengths) * lengths.max() ** 2


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken", "max"])
def test_vectors_that_wait_on_a_device_keep_no_hidden_states(backbone, rows, pooling):
    encoder = start_dual(Checkpoint(backbone), Start(pooling=pooling))[0].passage
    ids, mask = (torch.from_numpy(part) for part in rows.padded(np.arange(4), 0))
    for given in (mask, None):
        vectors = encoder(ids, given)
        assert vectors.untyped_storage().nbytes() == vectors.numel() * 4


def test_smaller_encoders_have_larger_batches_on_a_gpu():
    """As much work as BERT-base's, 170 MFLOP a token, up to a limit; larger ones have as many."""
    sizes = {flops: ComputeConfig().tokens_for("cuda", flops) for flops in (10**6, 85 * 10**6,
             170 * 10**6, 14 * 10**9)}  # fmt: skip
    assert list(sizes.values()) == [131_072, 49_152, 24_576, 24_576]
    assert ComputeConfig(batch_tokens=7).tokens_for("cuda", 10**6) == 7
    assert ComputeConfig().tokens_for("cpu", 10**6) == 2_048


# ---------------------------------------------------------------- lanes of a CPU


def test_vectors_do_not_depend_on_the_number_of_threads(checkpoint, rows):
    """A batch is one thread's work, so no sum is ever split otherwise."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(engine(checkpoint, batch_tokens=16).encode(rows))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("threads", "lanes", "each"), [(1, 1, 1), (8, 8, 1), (12, 6, 2), (96, 8, 12)]
)
def test_the_cores_are_shared_out(monkeypatch, checkpoint, threads, lanes, each):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = engine(checkpoint)
    assert (len(found._replicas), found._threads_each) == (lanes, each)
    assert len({id(replica) for replica, _ in found._replicas}) == 1


def test_a_batch_that_fails_ends_the_others(checkpoint, rows, monkeypatch):
    began = []

    def fails(self, replica, device, rows, batch):
        began.append(batch)
        raise ValueError("broken")

    monkeypatch.setattr(InferenceEngine, "_encode_batch", fails)
    with pytest.raises(ValueError, match="broken"):
        engine(checkpoint, batch_tokens=1).encode(rows)
    assert len(began) <= torch.get_num_threads() < rows.num_rows


@pytest.mark.skipif(not linear._can_pack(), reason="a CPU without bf16, or a torch without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 48), (2, 5, 48), (1, 48)])
def test_a_packed_linear_map_is_the_map(shape, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(48, 80, bias).bfloat16()
    x = torch.randn(shape).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(linear.PackedLinear(plain)(x), plain(x), rtol=0, atol=0)


@pytest.mark.skipif(not linear._can_pack(), reason="a CPU without bf16, or a torch without oneDNN")
def test_only_bf16_maps_are_packed(checkpoint):
    kinds = {}
    for dtype in ("fp32", "bf16"):
        encoder = load_encoder(Checkpoint(checkpoint))
        config = ComputeConfig(dtype=dtype, batch_tokens=64)
        replica, _ = InferenceEngine(encoder, 0, [CPU], config)._replicas[0]
        kinds[dtype] = {type(module) for module in replica.backbone.modules()}
        assert torch.nn.Linear in {type(module) for module in encoder.modules()}
    assert linear.PackedLinear not in kinds["fp32"]
    assert torch.nn.Linear not in kinds["bf16"] and linear.PackedLinear in kinds["bf16"]
