"""What inspect says of each server: the modules and settings that it reads, and vectors where it
runs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ance_cli.config import ComputeConfig
from ance_cli.errors import BadInput
from ance_cli.hub.servers import servers
from ance_cli.interop.export_onnx import export_onnx
from ance_cli.models.checkpoint import Checkpoint, write_settings
from ance_cli.models.dual import Start, save_dual, start_dual
from ance_cli.models.texts import TextEncoder
from ance_cli.models.tokens import Tokenizer

ST, TEI, VLLM, INFINITY, ONNX = (
    "sentence-transformers", "text-embeddings-inference", "vLLM", "Infinity", "ONNX Runtime",
)  # fmt: skip
OLD = "sentence_transformers.models."
TEXTS = ["river granite word3", "the old violin", "a " * 40 + "comet", "bread"]


def saved(backbone, folder, start=Start(), **settings):
    """A checkpoint with a fresh head, without prompts, whose queries and passages are of the
    model's length."""
    plain = Checkpoint(backbone)
    longest = plain.max_positions
    folder.mkdir()
    save_dual(
        start_dual(plain, start)[0],
        replace(plain.settings, query_length=longest, passage_length=longest, **settings),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory, backbone):
    root = tmp_path_factory.mktemp("served")
    starts = {
        "pooled": Start(normalize=True), "dot": Start(), "dense": Start(dim=16, normalize=True),
        "paper": Start(head="paper"), "two": Start(towers="two", normalize=True),
        "lasttoken": Start(pooling="lasttoken", normalize=True),
    }  # fmt: skip
    return {name: saved(backbone, root / name, start) for name, start in starts.items()}


@pytest.fixture
def place(places, tmp_path):
    """Copies a checkpoint, with the settings of texts of before sentence-transformers 5.4."""

    def copied(name):
        folder = tmp_path / name
        shutil.copytree(places[name], folder)
        older = {"max_seq_length": 128, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(older))
        return folder

    return copied


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rename(folder, name):
    def change(modules):
        for module in modules:
            module["type"] = name(module)

    edit(folder / "modules.json", change)


def answers(folder, **settings):
    """The folder's answers; `settings` change its `ance.json`."""
    checkpoint = Checkpoint(folder)
    write_settings(folder, replace(checkpoint.settings, **settings))
    return servers(Checkpoint(folder))


YES = "yes"
CLIENT = "yes, if the client"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pooled", {ST: YES, TEI: YES, VLLM: YES, INFINITY: YES}),
        ("lasttoken", {ST: YES, TEI: YES, VLLM: YES, INFINITY: YES}),
        ("dense", {ST: YES, TEI: YES, VLLM: YES, INFINITY: YES}),
        ("dot", {ST: YES, TEI: f"{CLIENT} asks /embed with normalize false", VLLM: YES,
                 INFINITY: "no: it scales every vector"}),
        ("paper", {ST: YES, TEI: "no: it leaves out Dense and LayerNorm",
                   VLLM: "no: it leaves out LayerNorm", INFINITY: "no: it scales every vector"}),
    ],
)  # fmt: skip
def test_the_modules_that_a_server_applies(place, name, expected):
    found = answers(place(name))
    for server, answer in expected.items():
        assert found[server].startswith(answer) and (answer != YES or found[server] == YES)
    assert found[ONNX] == f"{CLIENT} makes the token rows that ance.json describes"


TEMPLATE = "{title}: {text}"
CHANGES = [
    ({"query_prefix": "q: "}, "puts 'q: ' before queries", (ST, TEI, VLLM, INFINITY)),
    ({"passage_length": 32}, "cuts passages to 32 tokens", (TEI, VLLM, INFINITY)),
    ({"lowercase": True}, "lower-cases its texts", (ST, TEI, VLLM, INFINITY)),
    ({"passage_template": TEMPLATE}, f"writes passages as {TEMPLATE!r}",
     (ST, TEI, VLLM, INFINITY)),
    ({"separator": "<s>"}, "joins titles and texts by '<s>'", (ST, TEI, VLLM, INFINITY)),
    ({"truncate_dim": 8}, "keeps the first 8 numbers of the vectors", (TEI, VLLM, INFINITY)),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words", "named"), CHANGES)
def test_what_the_client_does_in_a_servers_place(place, monkeypatch, changes, words, named):
    from ance_cli.hub import servers as module

    # the small world's tokenizer lower-cases by itself
    monkeypatch.setattr(module, "_lower_cases", lambda tower: False)
    found = answers(place("pooled"), **changes)
    assert {server for server in (ST, TEI, VLLM, INFINITY) if words in found[server]} == set(named)
    assert all(found[server].startswith("yes, if ") for server in named)


def test_sides_that_differ_take_two_calls_of_sentence_transformers(place):
    folder = place("pooled")
    edit(folder / "config_sentence_transformers.json",
         lambda config: config["prompts"].update(query="q: "))  # fmt: skip
    assert answers(folder, query_prefix="q: ")[ST] == (
        "yes, if queries go through encode_query and passages through encode_document"
    )


def test_sentence_transformers_and_infinity_lower_case_where_the_folder_says_so(place, monkeypatch):
    from ance_cli.hub import servers as module

    monkeypatch.setattr(module, "_lower_cases", lambda tower: False)
    folder = place("pooled")
    edit(folder / "sentence_bert_config.json", lambda config: config.update(do_lower_case=True))
    found = answers(folder, lowercase=True)
    assert found[ST] == found[VLLM] == found[INFINITY] == YES
    assert found[TEI] == f"{CLIENT} lower-cases its texts"


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, False), ({"type": "NFC"}, False), ({"type": "Lowercase"}, True),
        ({"type": "BertNormalizer", "lowercase": True}, True),
        ({"type": "BertNormalizer", "lowercase": False}, False),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}, True),
    ],
)  # fmt: skip
def test_a_tokenizer_that_lower_cases_needs_no_client(place, normalizer, expected):
    folder = place("pooled")
    edit(folder / "tokenizer.json", lambda config: config.update(normalizer=normalizer))
    assert (answers(folder, lowercase=True)[TEI] == YES) == expected


@pytest.mark.parametrize(
    ("modes", "name"),
    [
        ("cls", None), ("mean", None), ("lasttoken", None), ("max", "max"),
        ("weightedmean", "weightedmean"), ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        (["cls", "mean"], "cls+mean"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flags", [False, True])
def test_the_pooling_modes_that_a_server_knows(place, modes, name, flags):
    folder = place("pooled")
    old = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens",
           "weightedmean": "weightedmean_tokens"}  # fmt: skip
    listed = [modes] if isinstance(modes, str) else modes
    config = {"word_embedding_dimension": 32, "include_prompt": True}
    config |= (
        {f"pooling_mode_{old.get(mode, mode)}": mode in listed for mode in (*old, *listed)}
        if flags
        else {"pooling_mode": modes}
    )
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    found = answers(folder)
    refused = f"no: it pools by cls, mean or lasttoken, not by {name}"
    assert found[TEI] == found[VLLM] == (refused if name else YES)
    assert found[ST] == found[INFINITY] == YES


def test_a_prompt_that_is_left_out_of_the_pooling(place):
    folder = place("pooled")
    edit(folder / "1_Pooling" / "config.json", lambda config: config.update(include_prompt=False))
    assert answers(folder)[TEI] == YES  # no prompt
    found = answers(folder, query_prefix="q: ")
    for server in (TEI, VLLM, INFINITY):
        assert found[server].startswith("no: it pools the tokens of the prompts too")
    assert found[ONNX] == "no: one graph cannot leave two different prompts out of the pooling"
    with pytest.raises(BadInput, match="one graph cannot leave out both"):
        export_onnx(Checkpoint(folder), folder.parent / "onnx")
    assert not found[ST].startswith("no")
    alike = answers(folder, query_prefix="p: ", passage_prefix="p: ")
    assert alike[ONNX].startswith("yes")


def test_segments_are_vectors_that_no_server_makes(place):
    found = answers(place("pooled"), segmentation="slice", max_segments=4)
    for server in (ST, TEI, VLLM, INFINITY):
        assert found[server].startswith("no: a passage has up to 4 vectors")
    assert found[ONNX].startswith(f"{CLIENT} makes the token rows")


def test_cosine_without_normalize_is_the_clients(place):
    found = answers(place("dot"), similarity="cosine")
    for server in (ST, VLLM):
        assert found[server].startswith(f"{CLIENT} compares by cosine")
    assert found[TEI] == found[INFINITY] == YES  # they scale every vector


def test_cut_vectors_are_scaled_again_for_cosine_only(place):
    folder = place("pooled")
    cut = f"{CLIENT} keeps the first 8 numbers of the vectors"
    assert answers(folder, truncate_dim=8)[TEI] == cut
    cosine = answers(folder, truncate_dim=8, similarity="cosine")[TEI]
    assert cosine == f"{cut} and scales them to length one"


@pytest.mark.parametrize(
    ("name", "kind", "served"),
    [
        ("pooled", "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
         "yes, if it reads the files of sentence-transformers 5.4"),
        ("dense", "sentence_transformers.base.modules.dense.Dense",
         "no: it leaves out Dense, whose name in modules.json it does not know"),
    ],
)  # fmt: skip
def test_the_names_since_sentence_transformers_5_4(place, name, kind, served):
    folder = place(name)
    old = OLD + kind.rsplit(".", 1)[-1]
    rename(folder, lambda module: module["type"].replace(old, kind))
    found = answers(folder)
    assert found[TEI].startswith(served) and "change 54533" in found[VLLM]
    assert all("is version" in found[server] for server in (ST, INFINITY))


def test_a_checkpoint_of_ours_has_the_names_that_servers_know(tmp_path, backbone):
    start = Start(dim=16, normalize=True, pooling="max")
    folder = saved(backbone, tmp_path / "ours", start, lowercase=True)
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        OLD + kind for kind in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [name for name, value in pooling.items() if value is True] == [
        "include_prompt", "pooling_mode_max_tokens",
    ]  # fmt: skip
    texts = json.loads((folder / "sentence_bert_config.json").read_text())
    assert (texts["max_seq_length"], texts["do_lower_case"]) == (128, True)
    np.testing.assert_allclose(our_vectors(folder, TEXTS), their_vectors(folder), atol=1e-6)


def their_vectors(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode_document(TEXTS)


def test_the_order_of_the_modules(place):
    folder = place("dense")

    def swap(modules):
        modules[2], modules[3] = modules[3], modules[2]

    edit(folder / "modules.json", swap)
    found = answers(folder)
    for server in (TEI, VLLM):
        assert found[server].startswith("no: it applies Pooling, Dense, Normalize in this order")
    assert found[ST] == YES


@pytest.mark.parametrize(
    ("activation", "refused"),
    [
        ("linear.Identity", ()), ("activation.Tanh", ()), ("activation.ReLU", (TEI,)),
        ("activation.GELU", (TEI, VLLM)),
    ],
)  # fmt: skip
def test_the_activations_that_a_server_knows(place, activation, refused):
    folder = place("dense")
    named = f"torch.nn.modules.{activation}"
    edit(folder / "2_Dense" / "config.json",
         lambda config: config.update(activation_function=named))  # fmt: skip
    found = answers(folder)
    assert {server for server, answer in found.items() if "activation" in answer} == set(refused)


def test_two_towers(places):
    found = answers(places["two"])
    for server in (TEI, VLLM, INFINITY):
        assert found[server].startswith("no: it serves one tower, and the folder has two")
    assert "encode_query" in found[ST] and found[ST].startswith("yes, if ")
    assert found[ONNX].startswith("yes, if ")


def test_a_static_embedding(tmp_path, backbone):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    table = StaticEmbedding(AutoTokenizer.from_pretrained(backbone), embedding_dim=8)
    SentenceTransformer(modules=[table], device="cpu").save(str(tmp_path / "static"))
    found = servers(Checkpoint(tmp_path / "static"))
    for server in (TEI, VLLM, INFINITY):
        assert found[server] == (
            "no: it serves Transformers, and the checkpoint is a StaticEmbedding"
        )
    assert found[ST].startswith("yes, if ") and "compares by cosine" in found[ST]


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter(place, backbone, with_config):
    pytest.importorskip("peft")
    folder = place("pooled")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(backbone)})
    )
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    if not with_config:
        (folder / "config.json").unlink()
    found = answers(folder)
    for server in (TEI, VLLM):
        assert found[server].startswith("no: ") and "merge the adapter first" in found[server]
    assert found[ST] == "yes, if peft is installed"
    assert found[INFINITY].startswith("yes, if peft" if with_config else "no: it looks for config")


def test_code_of_the_checkpoint(place, monkeypatch):
    folder = place("pooled")
    edit(folder / "config.json", lambda config: config.update(auto_map={"AutoModel": "own.Model"}))
    found = answers(folder)
    for server in (ST, VLLM, INFINITY):
        assert found[server] == "yes, if it may run the checkpoint's own code (trust_remote_code)"
    monkeypatch.setattr("ance_cli.models.tower.trusts_remote_code", lambda: True)
    rename(folder, lambda module: module["type"].replace(f"{OLD}Pooling", "own.Pooling"))
    found = answers(folder)
    for server in (TEI, VLLM):
        assert found[server] == "no: it leaves out Pooling"


def test_models_of_other_types_are_not_known(place):
    folder = place("pooled")
    edit(folder / "config.json", lambda config: config.update(model_type="albert"))
    found = answers(folder)
    for server in (TEI, VLLM):
        assert found[server] == "yes, if it serves albert models (not known)"
    assert found[ST] == found[INFINITY] == YES


def test_a_tokenizer_of_an_older_kind(place):
    folder = place("pooled")
    (folder / "tokenizer.json").rename(folder / "vocab.txt")
    found = answers(folder)
    assert found[TEI] == "no: it needs tokenizer.json" and found[VLLM] == YES


def test_a_plain_encoder_is_served_by_none(backbone):
    assert set(servers(Checkpoint(backbone)).values()) == {
        "no: the checkpoint has no pooling and head yet"
    }


# ---------------------------------------------------------------- vectors


def our_vectors(folder, texts):
    encode = TextEncoder(Checkpoint(folder), "passage", ComputeConfig(gpus="none", dtype="fp32"))
    return encode(texts)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "dense",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("dot", "lasttoken", "paper")),
    ],
)
def test_onnx_gives_our_vectors(places, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = Checkpoint(places[name])
    export_onnx(source, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "onnx" / "model.onnx")
    rows = Tokenizer(source)(TEXTS, "passage")
    token_ids, mask = rows.padded(range(len(TEXTS)), 0)
    inputs = {"input_ids": token_ids, "attention_mask": mask}
    (vectors,) = session.run(["sentence_embedding"], inputs)
    np.testing.assert_allclose(vectors, our_vectors(places[name], TEXTS), atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["pooled", "lasttoken", "dense", "dot", "paper"])
def test_infinity_gives_our_vectors(places, name):
    """Scaled to length one, so that it gives those of `dot` and `paper` up to their lengths."""
    infinity = pytest.importorskip("infinity_emb")
    import asyncio

    config = infinity.EngineArgs(
        model_name_or_path=str(places[name]), engine="torch", device="cpu", dtype="float32",
        bettertransformer=False, model_warmup=False,
    )  # fmt: skip

    async def served():
        engine = infinity.AsyncEmbeddingEngine.from_args(config)
        async with engine:
            return (await engine.embed(sentences=TEXTS))[0]

    vectors, ours = np.array(asyncio.run(served())), our_vectors(places[name], TEXTS)
    lengths = np.linalg.norm(ours, axis=1)
    cosines = (vectors * ours).sum(axis=1) / lengths
    assert (1 - cosines < 1e-3).all()
    scaled = servers(Checkpoint(places[name]))[INFINITY].startswith("yes")
    assert np.allclose(lengths, 1, atol=1e-4) == scaled
