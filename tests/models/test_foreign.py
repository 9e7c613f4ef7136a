"""Checkpoints of other layouts: tiny files with their key names, against forwards of their own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    RobertaConfig,
    RobertaModel,
)

from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.hub.convert import convert
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.foreign import load_foreign, read_weights
from tests.families import bare_qwen3
from tests.models.test_encoder import our_vectors, their_vectors
from tests.world import data_root, make_tokenizer, small_bert

TEXTS = ["River GRANITE word3", "the old violin", "bread"]


def initialised(model, seed):
    """Weights that are nowhere at their initial value."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def tokenizer_in(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- ANCE


class RobertaDot(torch.nn.Module):
    """The original model, written down again."""

    def __init__(self, config):
        super().__init__()
        self.roberta = RobertaModel(config)
        self.embeddingHead = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = torch.nn.LayerNorm(config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, 2)

    def forward(self, ids, mask):
        hidden = self.roberta(ids, attention_mask=mask).last_hidden_state
        return self.norm(self.embeddingHead(hidden[:, 0]))


@pytest.fixture
def roberta_dot():
    tokenizer = make_tokenizer()
    return initialised(
        RobertaDot(
            RobertaConfig(
                vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2,
                num_attention_heads=2, intermediate_size=24, max_position_embeddings=66,
                pad_token_id=0, architectures=["RobertaDot_NLL_LN"],
            )
        ), seed=1,
    )  # fmt: skip


def ance_folder(folder, model, prefix="", form="bin", **changes):
    """What the authors released: config, tokenizer, `pytorch_model.bin`."""
    tokenizer_in(folder)
    model.roberta.config.save_pretrained(folder)
    weights = {f"{prefix}{name}": each for name, each in model.state_dict().items()}
    for name, value in changes.items():
        name = name.replace("__", ".")
        weights.pop(name) if value is None else weights.update({name: value})
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def padded(texts, length=64):
    found = make_tokenizer()(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]


@pytest.mark.parametrize(("prefix", "form"), [("", "bin"), ("ance_encoder.", "safetensors")])
def test_an_ance_model_gives_the_vectors_of_its_own_forward(tmp_path, roberta_dot, prefix, form):
    source = ance_folder(tmp_path / "ance", roberta_dot, prefix, form)
    found = convert([source], tmp_path / "ours")
    assert found["layout"] == "ANCE" and found["towers"] == "shared" and found["dim"] == 16
    with torch.no_grad():
        expected = roberta_dot(*padded([text.lower() for text in TEXTS]))
    for side in ("query", "passage"):
        np.testing.assert_allclose(our_vectors(tmp_path / "ours", TEXTS, side), expected, atol=1e-5)
    settings = Checkpoint(tmp_path / "ours").settings
    assert (settings.query_length, settings.passage_length) == (64, 64), "the model takes no more"
    assert (settings.lowercase, settings.separator, settings.similarity) == (True, "<sep>", "dot")


def test_case_and_sentence_transformers_after_conversion(tmp_path, roberta_dot):
    convert([ance_folder(tmp_path / "ance", roberta_dot)], tmp_path / "ours")
    np.testing.assert_allclose(
        our_vectors(tmp_path / "ours", TEXTS), their_vectors(tmp_path / "ours", TEXTS), atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embeddingHead__weight": None}, "has no embeddingHead.weight: the head of this ANCE"),
        ({"norm__bias": None}, "has no norm.bias: the head"),
        ({"norm__weight": torch.ones(16)}, "every norm.weight is 1, its initial value"),
        ({"roberta__encoder.layer.1.output.dense.weight": None}, "1 weights are not in the file, "
         "for instance encoder.layer.1.output.dense.weight"),
        ({"roberta__encoder.layer.2.output.dense.bias": torch.ones(3)}, "belong to no part"),
        ({"another__weight": torch.ones(3)}, "another.weight is not a weight of an ANCE model"),
        ({"norm__weight": torch.zeros(3)}, r"norm.weight has shape \(3,\), expected \(16,\)"),
        ({"embeddingHead__weight": torch.zeros(16, 3)}, r"shape \(16, 3\), expected \(16, 16\)"),
    ],
)  # fmt: skip
def test_a_head_or_weight_that_does_not_fit_is_refused(tmp_path, roberta_dot, changes, words):
    source = ance_folder(tmp_path / "ance", roberta_dot, **changes)
    with pytest.raises(BadInput, match=words):
        convert([source], tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir() if "lease" not in path.name) == ["ance"]


def test_an_ance_folder_without_any_head_is_not_taken_for_a_plain_encoder(tmp_path, roberta_dot):
    gone = dict.fromkeys(["embeddingHead__weight", "embeddingHead__bias", "norm__weight",
                          "norm__bias"])  # fmt: skip
    source = ance_folder(tmp_path / "ance", roberta_dot, **gone)
    with pytest.raises(BadInput, match="has no embeddingHead.weight"):
        convert([source], tmp_path / "ours")
    with pytest.raises(UsageProblem, match="defines its pooling and similarity itself"):
        convert([source], tmp_path / "ours", pooling="cls")


def test_the_pins_of_the_document_model_are_given(tmp_path, roberta_dot):
    source = ance_folder(tmp_path / "ance", roberta_dot)
    settings = {"segmentation": "slice", "max_segments": 4, "passage_length": 12, "separator": None}
    convert([source], tmp_path / "ours", settings=settings)
    made = Checkpoint(tmp_path / "ours").settings
    assert (made.segmentation, made.max_segments, made.passage_length) == ("slice", 4, 12)
    with pytest.raises(BadInput, match="takes at most 64 tokens, --passage-length asks for 65"):
        convert([source], tmp_path / "long", settings={"passage_length": 65})


# ---------------------------------------------------------------- DPR


@pytest.fixture
def berts():
    config = small_bert(len(make_tokenizer()))
    return {
        side: initialised(BertModel(config), seed) for seed, side in enumerate(("query", "passage"))
    }


def bert_vectors(model, texts):
    ids, mask = padded(texts)
    with torch.no_grad():
        return model(ids, attention_mask=mask).last_hidden_state[:, 0]


def named(model, prefix):
    return {f"{prefix}{name}": each for name, each in model.state_dict().items()}


def test_a_dpr_file_becomes_two_towers(tmp_path, berts):
    backbone = tokenizer_in(tmp_path / "bert")
    berts["query"].config.save_pretrained(backbone)
    weights = named(berts["query"], "question_model.") | named(berts["passage"], "ctx_model.")
    file = tmp_path / "hf_bert_base.cp"
    torch.save({"model_dict": weights, "epoch": 3, "encoder_params": {"sequence_length": 256}},
               file)  # fmt: skip
    with pytest.raises(UsageProblem, match="has no config.json"):
        convert([file], tmp_path / "ours")
    found = convert([file], tmp_path / "ours", backbone=backbone)
    assert found["layout"] == "DPR" and found["towers"] == "two"
    for side, model in berts.items():
        np.testing.assert_allclose(
            our_vectors(tmp_path / "ours", TEXTS, side), bert_vectors(model, TEXTS), atol=1e-5
        )
    settings = Checkpoint(tmp_path / "ours").settings
    assert (settings.separator, settings.lowercase, settings.query_length) == (
        " [SEP] ",
        False,
        128,
    )


def test_the_separator_of_dpr_makes_the_tokens_of_a_pair():
    tokenizer = make_tokenizer()
    pair = tokenizer("river", "granite word3")["input_ids"]
    assert tokenizer("river [SEP] granite word3")["input_ids"] == pair


def dpr_folder(folder, model, name, prefix, form="bin", projection=None):
    tokenizer_in(folder)
    config = {**model.config.to_dict(), "model_type": "dpr", "projection_dim": 0,
              "architectures": [name]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weights = named(model, f"{prefix}bert_model.")
    if projection is not None:
        weights |= named(projection, f"{prefix}encode_proj.")
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_two_folders_of_dpr(tmp_path, berts):
    question = dpr_folder(tmp_path / "q", berts["query"], "DPRQuestionEncoder",
                          "question_encoder.", "safetensors")  # fmt: skip
    context = dpr_folder(tmp_path / "c", berts["passage"], "DPRContextEncoder", "ctx_encoder.")
    convert([context, question], tmp_path / "ours")  # the names say which is which
    for side, model in berts.items():
        np.testing.assert_allclose(
            our_vectors(tmp_path / "ours", TEXTS, side), bert_vectors(model, TEXTS), atol=1e-5
        )
    with pytest.raises(BadInput, match="has no context encoder"):
        convert([question], tmp_path / "half")
    with pytest.raises(UsageProblem, match="holds a second query encoder"):
        convert([question, question / "model.safetensors"], tmp_path / "half", backbone=question)


@pytest.mark.parametrize("projection", [0, 8])
def test_the_folders_that_transformers_writes(tmp_path, projection):
    """Its own classes make the files, and the vectors that ours are compared with."""
    config = DPRConfig(**small_bert(len(make_tokenizer())).to_dict(), projection_dim=projection)
    models = {"query": DPRQuestionEncoder, "passage": DPRContextEncoder}
    for seed, (side, kind) in enumerate(models.items()):
        models[side] = initialised(kind(config), seed).eval()
        models[side].save_pretrained(tokenizer_in(tmp_path / side))
    convert([tmp_path / side for side in models], tmp_path / "ours")
    ids, mask = padded(TEXTS)
    for side, model in models.items():
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).pooler_output
        np.testing.assert_allclose(our_vectors(tmp_path / "ours", TEXTS, side), expected, atol=1e-5)


def test_a_projection_of_dpr_is_part_of_the_vectors(tmp_path, berts):
    projections = {side: initialised(torch.nn.Linear(32, 8), 5) for side in berts}
    folders = [
        dpr_folder(tmp_path / side, model, "DPR", f"{name}_encoder.", projection=projections[side])
        for (side, model), name in zip(berts.items(), ("question", "ctx"), strict=True)
    ]
    assert convert(folders, tmp_path / "ours")["dim"] == 8
    with torch.no_grad():
        expected = projections["query"](bert_vectors(berts["query"], TEXTS))
    np.testing.assert_allclose(our_vectors(tmp_path / "ours", TEXTS, "query"), expected, atol=1e-5)


# ---------------------------------------------------------------- plain, sentence-transformers


@pytest.mark.parametrize("pickled", [False, True])
def test_a_plain_encoder_needs_a_pooling(tmp_path, backbone, pickled):
    source = tokenizer_in(tmp_path / "plain")
    model = BertModel.from_pretrained(backbone, add_pooling_layer=False)
    model.save_pretrained(source)
    if pickled:
        weights = read_weights(source / "model.safetensors")
        torch.save({f"bert.{name}": each for name, each in weights.items()},
                   source / "pytorch_model.bin")  # fmt: skip
        (source / "model.safetensors").unlink()
    with pytest.raises(UsageProblem, match="is a plain encoder: it does not define"):
        convert([source], tmp_path / "ours")
    convert([source], tmp_path / "ours", pooling="mean", similarity="cosine")
    made = Checkpoint(tmp_path / "ours")
    assert made.is_cosine and made.settings.scale == 20.0
    ids, mask = padded(TEXTS)
    with torch.no_grad():
        hidden = model.eval()(ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(mean, dim=-1)
    np.testing.assert_allclose(our_vectors(tmp_path / "ours", TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_an_adapter_alone_is_merged_into_its_base(tmp_path, backbone, kind, pickled):
    """As Tevatron and FlagEmbedding leave it: adapter and tokenizer, neither config nor pooling."""
    peft = pytest.importorskip("peft")
    base = backbone if kind == "bert" else bare_qwen3(tmp_path / "base")
    targets = ["query", "value"] if kind == "bert" else ["q_proj", "v_proj"]
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets)).eval()
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    source = tmp_path / "adapter"
    adapted.save_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(source)
    if pickled:
        torch.save(read_weights(source / "adapter_model.safetensors"), source / "adapter_model.bin")
        (source / "adapter_model.safetensors").unlink()
    pooling = None
    if kind == "bert":
        pooling = "mean"
        with pytest.raises(UsageProblem, match="is a plain encoder: it does not define"):
            convert([source], tmp_path / "ours")
    assert convert([source], tmp_path / "ours", pooling=pooling)["layout"] == "plain"
    assert convert([source], tmp_path / "ours", pooling=pooling)["up_to_date"]
    assert not (tmp_path / "ours" / "adapter_config.json").exists()
    with torch.no_grad():
        expected = [
            adapted(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS
        ]
    pooled = [states.mean(0) if kind == "bert" else states[-1] for states in expected]
    ours = our_vectors(tmp_path / "ours", TEXTS)
    np.testing.assert_allclose(ours, torch.stack(pooled), atol=1e-5)
    config = base / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    with pytest.raises(Mismatch, match="was made from other files or settings"):
        convert([source], tmp_path / "ours", pooling=pooling)
    config.write_text(before)


def test_a_sentence_transformers_folder_with_older_weight_files(tmp_path, backbone):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    source = tmp_path / "st"
    modules = [Transformer(str(backbone)), Pooling(32, "cls"), Dense(32, 8), Normalize()]
    SentenceTransformer(modules=modules).save(str(source))
    expected = their_vectors(source, TEXTS)
    for path in list(source.rglob("model.safetensors")):
        torch.save(read_weights(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    assert convert([source], tmp_path / "ours")["layout"] == "sentence-transformers"
    np.testing.assert_allclose(our_vectors(tmp_path / "ours", TEXTS), expected, atol=1e-5)
    convert([source], tmp_path / "dot", similarity="dot")
    assert Checkpoint(tmp_path / "dot").settings.similarity == "dot"
    with pytest.raises(UsageProblem, match="defines its pooling and similarity itself"):
        convert([source], tmp_path / "other", pooling="mean")


def test_what_is_more_than_tensors_is_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    tokenizer_in(tmp_path / "evil")
    torch.save({"roberta.x": torch.ones(1), "evil": Evil()}, tmp_path / "evil/pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot be read without running code from it") as caught:
        load_foreign([tmp_path / "evil"], tmp_path / "scratch")
    assert "two options" not in caught.value.what, "torch also explains how to run it"
    assert not (tmp_path / "ran").exists()


def test_a_machine_without_memory_does_not_make_the_file_a_bad_one(tmp_path, monkeypatch):
    def out_of_memory(*arguments, **named):
        raise MemoryError

    torch.save({"a": torch.ones(1)}, tmp_path / "model.bin")
    monkeypatch.setattr(torch, "load", out_of_memory)
    with pytest.raises(MemoryError):
        read_weights(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "expected tensors by name, found list"),
        ({"model_dict": {"a": 3}}, "'a' should be a tensor, found int"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, content, words):
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(BadInput, match=words):
        read_weights(tmp_path / "model.bin")
    with pytest.raises(BadInput, match="holds no weights"):
        load_foreign([tmp_path], tmp_path / "scratch")


def test_two_sources_that_are_not_dprs(tmp_path, roberta_dot):
    folders = [ance_folder(tmp_path / name, roberta_dot) for name in "ab"]
    with pytest.raises(
        UsageProblem, match="two sources must be the question and the context encoder"
    ):
        convert(folders, tmp_path / "ours")


def test_what_was_converted_says_from_what(tmp_path, roberta_dot):
    source = ance_folder(tmp_path / "ance", roberta_dot)
    convert([source], tmp_path / "ours")
    origin = json.loads((tmp_path / "ours" / "ance.json").read_text())["converted_from"]
    assert origin["layout"] == "ANCE" and "ance/pytorch_model.bin" in origin["files"]


# ---------------------------------------------------------------- released


@pytest.mark.realdata
def test_the_released_ance_model_gives_its_known_vectors(tmp_path):
    source = data_root("ANCE_TEST_WEIGHTS") / "castorini" / "ance-msmarco-passage"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    convert([source], tmp_path / "ours")
    queries = ["what is paula deen's brother", "Androgen receptor define"]  # dev.small's first two
    found = our_vectors(tmp_path / "ours", queries, "query")
    np.testing.assert_allclose(found[:, 0], [-1.34755, -1.36109], atol=1e-4)
    np.testing.assert_allclose(found[:, -1], [-1.22419, -1.47927], atol=1e-4)
