"""Packed batches give the vectors and the gradients of padded ones, and nothing waits for a GPU."""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, DistilBertConfig, ModernBertConfig, Qwen3Config

from ance_cli.call import TRUST
from ance_cli.config import ComputeConfig
from ance_cli.models import packing
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import load_encoder, set_dropout
from ance_cli.models.inference import InferenceEngine
from ance_cli.models.tokens import Tokenizer
from tests.families import FAMILIES, REFUSED, REMOTE_CODE

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
TEXTS = [
    "river granite word3",
    "the old violin",
    "x",
    "UPPER Case Zürich",
    "a tab\tof bread",
] * 3 + ["The old comet is a small body of ice and bread. " * length for length in (2, 12, 5, 3)]
"""More tokens than any row's model has positions."""
PADDED = {
    "mpnet": "mpnet",
    "deberta-v3": "deberta-v2",
    "xlnet": "xlnet",
    "t5": "t5",
    "mt5": "mt5",
    "clip-text": "clip",
    "static-embedding": "a static table",
    "static-embedding-prompts": "a static table",
    **dict.fromkeys(REMOTE_CODE, "new"),
}
"""Rows whose batches are padded, and what the reason names."""
PACKED = [name for name in FAMILIES if name not in REFUSED and name not in PADDED]
KINDS = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert",
         "nomic-bert", "gte", "qwen2", "qwen3", "embedding-gemma", "llama", "mistral", "gpt-neox",
         "lora-alone"]  # fmt: skip
"""Rows that differ in what a batch goes through. Only a pooling that leaves the prompt out looks at
values: the library's own."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A row's checkpoint, built once."""
    root, found = tmp_path_factory.mktemp("packing"), {}

    def checkpoint_of(name):
        if name not in found:
            FAMILIES[name](root / name)
            with pytest.MonkeyPatch.context() as patched:
                if name in REMOTE_CODE:
                    patched.setenv(TRUST, "1")
                found[name] = Checkpoint(root / name)
        return found[name]

    return checkpoint_of


def on_device(array):
    return torch.from_numpy(array)


def packed(encoder):
    packing.use_packing(encoder.backbone)
    encoder.packs = True
    return encoder


def encoded(checkpoint, side, packs, **settings):
    encoder = load_encoder(checkpoint, side)
    config = ComputeConfig(gpus="none", dtype="fp32", batch_tokens=120)
    tokenizer = Tokenizer(checkpoint)
    engine = InferenceEngine(encoder, tokenizer.pad_id_of(side), [CPU], config)
    sizes = []
    if packs:  # after the engine chose the kernels of a CPU
        packed(engine._replicas[0][0])
    rows = tokenizer(TEXTS, side)
    return engine.encode(rows, on_batch=lambda batch, size: sizes.append(size)), rows, sizes


@pytest.mark.parametrize(
    ("name", "side"), [*((name, "passage") for name in PACKED), ("bert", "query")]
)
def test_packed_vectors_are_the_padded_ones(built, name, side):
    expected, rows, _ = encoded(built(name), side, packs=False)
    found, _, sizes = encoded(built(name), side, packs=True)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert sum(size.tokens for size in sizes) == rows.lengths.sum()
    assert sum(size.squares for size in sizes) == (rows.lengths**2).sum()


@pytest.mark.parametrize("name", PADDED)
def test_other_families_are_padded_and_say_why(built, name, monkeypatch):
    if name in REMOTE_CODE:
        monkeypatch.setenv(TRUST, "1")
    backbone = load_encoder(built(name)).backbone
    reason = packing.cannot_pack(backbone, CUDA, "bf16")
    assert reason == f"{PADDED[name]} is not among the packed families"


def test_every_packed_family_has_a_row(built):
    types = {load_encoder(built(name)).backbone.config.model_type for name in KINDS}
    assert types == set(packing._MODEL_TYPES) - {"camembert"}  # RoBERTa's code


@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3", "mistral", "embedding-gemma"])
def test_packed_gradients_are_the_padded_ones(built, name):
    checkpoint, found = built(name), []
    rows = Tokenizer(checkpoint)(TEXTS, "passage")
    everything = np.arange(rows.num_rows)
    for packs in (False, True):
        encoder = load_encoder(checkpoint).train()
        set_dropout(encoder, 0.0)
        if packs:
            vectors = packed(encoder)(*packing.pack(rows, everything, on_device))
        else:
            vectors = encoder(*map(on_device, rows.padded(everything, 0, 1)))
        (vectors * torch.linspace(-1, 1, vectors.numel()).view(vectors.shape)).sum().backward()
        found.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, atol=2e-5, rtol=1e-4)


def test_a_window_shorter_than_the_row_is_the_librarys():
    """Of causal and of other layers; the library makes masks for its own kernels."""
    for config in (
        ModernBertConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                         num_attention_heads=2, global_attn_every_n_layers=2, local_attention=6,
                         pad_token_id=0),
        Qwen3Config(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=3,
                    use_sliding_window=True, max_window_layers=0),
    ):  # fmt: skip
        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()
        rows = [torch.randint(1, 50, (length,)) for length in (19, 4, 11)]
        with torch.no_grad():
            expected = [model(input_ids=row[None]).last_hidden_state[0] for row in rows]
            packing.use_packing(model)
            lengths = torch.tensor([len(row) for row in rows])
            bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
            positions = torch.cat([torch.arange(len(row)) for row in rows])
            batch = packing.Packing(bounds, positions, positions, 19)
            found = model(input_ids=torch.cat(rows)[None], **packing.features_of(batch, model))
        torch.testing.assert_close(found.last_hidden_state[0], torch.cat(expected))


def test_the_reference_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(9, 4, 8, generator=generator)
    k, v = torch.randn(2, 9, 2, 8, generator=generator)
    bounds = torch.tensor([0, 5, 6, 9], dtype=torch.int32)
    found = packing._row_by_row(q, k, v, bounds, 5, 0.3, (2, 0))
    for start, end in ((0, 5), (5, 6), (6, 9)):
        for at in range(start, end):
            for head in range(4):
                seen = slice(max(start, at - 2), at + 1)  # two before, none after
                weights = torch.softmax(0.3 * k[seen, head // 2] @ q[at, head], 0)
                torch.testing.assert_close(found[at, head], weights @ v[seen, head // 2])


# ---------------------------------------------------------------- what a GPU runs


@pytest.fixture
def gpu(monkeypatch):
    """The answers of a machine whose GPU 0 can do flash attention."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packing, "_kernel_parameters", lambda: {"scale", "window_size"})


def tiny_bert(**settings):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
             "intermediate_size": 16}  # fmt: skip
    return AutoModel.from_config(BertConfig(**{**sizes, **settings}))


def test_what_packs_on_a_gpu(gpu, monkeypatch):
    assert packing.cannot_pack(tiny_bert(), CUDA, "bf16") is None
    assert packing.cannot_pack(tiny_bert(), CPU, "bf16") == "no GPU"
    assert packing.cannot_pack(tiny_bert(), CUDA, "fp32") == "flash attention takes no fp32"
    narrow = tiny_bert(hidden_size=48)
    assert packing.cannot_pack(narrow, CUDA, "fp16") == "flash attention takes no heads of 12"
    in_training = packing.cannot_pack(tiny_bert(), CUDA, "bf16", training=True)
    assert in_training == "variable-length attention has no dropout, and the model's is 0.1"
    still = tiny_bert(attention_probs_dropout_prob=0.0)
    assert packing.cannot_pack(still, CUDA, "bf16", training=True) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in packing.cannot_pack(tiny_bert(), CUDA, "fp16")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packing, "_kernel_parameters", lambda: {"scale"})
    assert "no variable-length attention with windows" in packing.cannot_pack(
        tiny_bert(), CUDA, "fp16"
    )


def test_batches_are_padded_if_one_of_several_gpus_cannot_pack(built, monkeypatch):
    """The meta device stands for GPUs of two generations in one machine."""
    old, new = torch.device("meta", 1), torch.device("meta", 0)
    reasons = {old: "flash attention needs a GPU of compute capability 8.0", new: None}
    monkeypatch.setattr(
        "ance_cli.models.inference.cannot_pack", lambda backbone, device, dtype: reasons[device]
    )
    for devices, packs in (([new], True), ([new, old], False), ([old, new], False)):
        encoder = load_encoder(built("bert"))
        engine = InferenceEngine(encoder, 0, devices, ComputeConfig(dtype="fp32"))
        assert engine.packs == packs


def test_the_kernel_of_this_torch_takes_what_it_is_given():
    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn)
    tensor = torch.zeros(0)
    signature.bind(tensor, tensor, tensor, tensor, tensor, 1, 1, scale=1.0, window_size=(-1, 0))


@pytest.mark.parametrize("knows_groups", [False, True])
def test_the_kernel_is_called_with_the_heads_it_takes(monkeypatch, knows_groups):
    calls = []

    def kernel(q, k, v, bounds_q, bounds_k, most_q, most_k, *, scale, window_size, **shared):
        calls.append((q.shape, k.shape, shared, scale, window_size, most_q))
        return torch.zeros_like(q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    known = {"scale", "window_size"} | ({"enable_gqa"} if knows_groups else set())
    monkeypatch.setattr(packing, "_kernel_parameters", lambda: known)
    q, k = torch.zeros(9, 4, 8), torch.zeros(9, 2, 8)
    bounds = torch.tensor([0, 9], dtype=torch.int32)
    assert packing._flash(q, k, k, bounds, 9, 0.5, (-1, 0)).shape == q.shape
    heads = 2 if knows_groups else 4
    shared = {"enable_gqa": True} if knows_groups else {}
    assert calls == [(q.shape, (9, heads, 8), shared, 0.5, (-1, 0), 9)]


@pytest.mark.parametrize("name", KINDS)
def test_dropout_of_attention_is_found(built, name, monkeypatch):
    """What `attend` gets in training is what `attention_dropout` says before."""
    backbone = load_encoder(built(name)).backbone.train()
    set_dropout(backbone, 0.25)
    heard = []

    def heard_dropout(module, query, *_, dropout=0.0, **__):
        heard.append(dropout)
        return query.transpose(1, 2), None

    monkeypatch.setattr(packing, "attend", heard_dropout)
    packing.use_packing(backbone)
    ids = torch.tensor([[3, 4, 5, 6]])
    positions = torch.arange(4)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    batch = packing.Packing(bounds, positions, positions, 4)
    backbone(input_ids=ids, **packing.features_of(batch, backbone))
    assert max(heard) == packing.attention_dropout(backbone) == 0.25


def test_dropout_in_a_packed_batch_is_a_bug():
    q = torch.zeros(1, 1, 2, 8)
    bounds = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="no dropout in attention"):
        packing.attend(SimpleNamespace(is_causal=False), q, q, q, None, dropout=0.1,
                       cu_seq_lens_q=bounds, max_length_q=2)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_nothing_in_a_batch_waits_for_the_device(built, name, monkeypatch):
    """On the meta device every look at a value raises."""
    monkeypatch.setattr(packing, "_row_by_row", lambda q, *_: torch.empty_like(q))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    checkpoint = built(name)
    rows = Tokenizer(checkpoint)(TEXTS, "passage")
    encoder = packed(load_encoder(checkpoint)).to(META)
    with torch.inference_mode():
        vectors = encoder(
            *packing.pack(rows, np.arange(9), lambda array: on_device(array).to(META))
        )
    assert vectors.shape == (9, encoder.dim) and vectors.is_meta
    with pytest.raises((NotImplementedError, RuntimeError)):
        bool(vectors.sum())


def test_a_model_without_attention_of_its_own_has_no_dropout():
    assert packing.attention_dropout(nn.Linear(2, 2)) == 0.0
    model = AutoModel.from_config(
        DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=1, n_heads=2)
    )
    assert packing.attention_dropout(model) == 0.1
