"""Our pair scores are sentence-transformers', and a folder that cannot score pairs is refused."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ance_cli.errors import BadInput, ResourceExhausted
from ance_cli.models import cross_encoder
from ance_cli.models.cross_encoder import CrossEncoder, cross_encoder_fingerprint, probability
from ance_cli.models.inference import in_halves
from tests.world import FILLER, TOPICS, Said, make_cross_encoder, make_tokenizer

PAIRS = [
    ("river word1", "the old river found"),
    ("violin", "a " * 40 + "violin word2"),
    ("old bread", ""),
    ("comet", "small comet with a large comet"),
    ("river word1", "violin " * 300),  # cut to the model's 128 positions
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture
def copied(tmp_path, folder):
    return shutil.copytree(folder, tmp_path / "copied")


def scorer(folder, dtype="fp32", **options):
    return CrossEncoder(folder, gpus="none", dtype=dtype, **options)


def their_scores(folder, pairs, max_length):
    from sentence_transformers import CrossEncoder as Theirs

    model = Theirs(
        str(folder), device="cpu", max_length=max_length, activation_fn=torch.nn.Identity()
    )
    model.float()
    return model.predict(pairs)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("max_length", [128, 24, 21])
def test_scores_are_sentence_transformers(folder, max_length):
    ours = scorer(folder, max_length=max_length).scores(PAIRS)
    assert ours.dtype == np.float32 and ours.shape == (5,)
    assert np.ptp(ours) > 0.1
    np.testing.assert_allclose(ours, their_scores(folder, PAIRS, max_length), atol=1e-5)


def test_token_types_tell_query_from_passage(folder, copied):
    weights = load_file(copied / "model.safetensors")
    weights["bert.embeddings.token_type_embeddings.weight"][1, 0] += 1.0
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert np.abs(scorer(copied).scores(PAIRS) - scorer(folder).scores(PAIRS)).max() > 0.01


def test_neither_batches_nor_blocks_change_scores(folder, monkeypatch):
    rng = np.random.default_rng(3)
    pairs = [
        (TOPICS[n % 8], " ".join(rng.choice([*TOPICS, *FILLER], rng.integers(0, 60))))
        for n in range(50)
    ]
    seen = []
    whole = scorer(folder).scores(pairs, seen.append)
    assert sum(seen) == 50
    monkeypatch.setattr(cross_encoder, "_BLOCK", 7)
    np.testing.assert_allclose(scorer(folder, batch_tokens=90).scores(pairs), whole, atol=1e-5)
    alone = np.concatenate([scorer(folder).scores([pair]) for pair in pairs[:5]])
    np.testing.assert_allclose(alone, whole[:5], atol=1e-5)


def test_few_widths_occur_and_none_is_over_the_length(folder, monkeypatch):
    """Torch keeps memory for each shape; beyond the last position there is nothing to read."""
    model = scorer(folder, max_length=45, batch_tokens=64)
    widths = []
    replica = model._replicas[0][0]
    real = replica.forward

    def seeing(input_ids, **inputs):
        widths.append(input_ids.shape[1])
        return real(input_ids=input_ids, **inputs)

    monkeypatch.setattr(replica, "forward", seeing)
    model.scores([("river", "bread " * count) for count in range(60)])
    assert set(widths) == {8, 16, 24, 32, 40, 45}


def test_no_pairs_have_no_scores(folder):
    assert scorer(folder).scores([]).shape == (0,)


def test_the_passage_is_cut_and_the_query_stays(folder):
    model = scorer(folder, max_length=16)
    query = " ".join(["river"] * 8)
    cut = model.scores([(query, " ".join(["the", "old", "comet", "bread", "is", *"a" * 30]))])
    # three special tokens and eight of the query leave room for five of the passage
    assert cut == model.scores([(query, "the old comet bread is")])
    assert cut != model.scores([(query, "the old comet bread")])


def test_a_query_of_over_half_the_length_leaves_room_for_the_passage(folder):
    model = scorer(folder, max_length=16)
    long = " ".join(["river"] * 40)
    pairs = [(long, "the old comet"), ("river", "violin " * 40), (long, "violin " * 40)]
    cut = [(" ".join(["river"] * 10), "the old comet"), ("river", "violin " * 12)]
    np.testing.assert_allclose(model.scores(pairs)[:2], model.scores(cut), atol=1e-6)
    assert model.scores(pairs)[2] != model.scores([(long, "comet " * 40)])[0]


@pytest.mark.parametrize("max_length", [8, 16, 128])
def test_pairs_that_are_cut_are_counted(folder, max_length):
    """Twin: the pair's tokens without truncation, [CLS] query [SEP] passage [SEP]."""
    model, said = scorer(folder, max_length=max_length), Said()
    whole = make_tokenizer()([query for query, _ in PAIRS], [text for _, text in PAIRS])
    cut = sum(len(ids) > max_length for ids in whole["input_ids"])
    model.scores(PAIRS)
    assert (model.num_cut, model.num_pairs) == (cut, len(PAIRS)) and cut
    model.say_cut(said)
    assert said.lines == [
        f"{cut} of 5 pairs have more than {max_length} tokens and are cut (--pair-length)"
    ]


def test_bf16_stays_near_and_its_logits_are_not_rounded(folder):
    exact, rounded = (scorer(folder, dtype).scores(PAIRS) for dtype in ("fp32", "bf16"))
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    assert (torch.from_numpy(rounded).bfloat16().float().numpy() != rounded).any()


def test_probability_is_the_sigmoid():
    found = probability(np.array([0.0, 2.0, -2.0, 200.0, -200.0], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.5, 0.8807971, 0.1192029, 1.0, 0.0], atol=1e-6)


@pytest.mark.realdata
def test_real_weights(test_weights):
    folder = test_weights / "ms-marco-MiniLM-L-12-v2"
    query = "how many people live in Berlin?"
    relevant = "Berlin had a population of 3,520,031 registered inhabitants in an area of 891 km2."
    pairs = [
        (query, "New York City is famous for the Metropolitan Museum of Art."),
        (query, relevant),
        ("what causes gout", "Uric acid crystals in a joint cause gout. " * 80),
        ("what causes gout", relevant),
    ]
    ours = scorer(folder).scores(pairs)
    np.testing.assert_allclose(ours, their_scores(folder, pairs, 512), atol=1e-4)
    assert ours[1] > ours[0] + 5 and ours[2] > ours[3] + 5


# ---------------------------------------------------------------- memory


def test_a_batch_that_does_not_fit_is_halved():
    tried = []

    def compute(part):
        tried.append(part.tolist())
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return part * 10.0

    found = in_halves(compute, np.arange(5), "", "", np.concatenate)
    np.testing.assert_array_equal(found, np.arange(5) * 10.0)
    assert tried == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1], [2], [3, 4]]


def test_a_pair_that_does_not_fit_by_itself_is_an_error(folder, monkeypatch):
    model = scorer(folder)

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "_logits", full)
    with pytest.raises(ResourceExhausted) as caught:
        model.scores([("river", "the old river")])
    assert caught.value.what == "cpu: one pair of 7 tokens does not fit in memory"
    assert caught.value.hint == "free the device, or lower max_length"


def test_every_device_scores_and_the_order_is_that_of_the_pairs(folder, monkeypatch):
    pairs = [(f"river word{n}", "old " * (n % 7) + f"bread word{n}") for n in range(40)]
    expected = scorer(folder, batch_tokens=64).scores(pairs)
    cpu = torch.device("cpu")
    monkeypatch.setattr("ance_cli.models.devices.choose_devices", lambda gpus: [cpu, cpu, cpu])
    model, used = scorer(folder, batch_tokens=64), []
    logits = model._logits

    def slow(replica, device, rows):
        used.append(id(replica))
        time.sleep(0.02)  # so that no replica takes every batch
        return logits(replica, device, rows)

    monkeypatch.setattr(model, "_logits", slow)
    np.testing.assert_allclose(model.scores(pairs), expected, atol=1e-6)
    assert set(used) == {id(replica) for replica, _ in model._replicas}


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_follows_files_and_length(folder, copied):
    first = scorer(folder).fingerprint
    assert first == cross_encoder_fingerprint(folder) == scorer(copied, "bf16").fingerprint
    assert cross_encoder_fingerprint(folder, 128) == first  # 512 is more than the model takes
    assert cross_encoder_fingerprint(folder, 64) == scorer(folder, max_length=64).fingerprint
    assert cross_encoder_fingerprint(folder, 64) != first
    (copied / "README.md").write_text("A model.")
    assert cross_encoder_fingerprint(copied) == first
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        changed = copied / name
        content = changed.read_bytes()
        changed.write_bytes(content + b" ")
        assert cross_encoder_fingerprint(copied) != first
        changed.write_bytes(content)
    assert cross_encoder_fingerprint(copied) == first


def test_the_fingerprint_needs_no_torch(folder):
    code = (
        "import sys; from pathlib import Path\n"
        "from ance_cli.models.cross_encoder import cross_encoder_fingerprint\n"
        f"cross_encoder_fingerprint(Path({str(folder)!r}))\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


# ---------------------------------------------------------------- folders that are refused


def refused(folder):
    with pytest.raises(BadInput) as caught:
        scorer(folder)
    return caught.value.what, caught.value.hint


def test_a_folder_that_is_none(tmp_path):
    what, hint = refused(tmp_path / "none")
    assert what == f"{tmp_path}/none/config.json: no such file: not a cross-encoder folder"
    assert hint.startswith("name a folder with a sequence classifier")


def test_pickled_weights(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    what, hint = refused(copied)
    assert what == f"{copied}: holds no weights in safetensors format"
    assert hint.startswith("pickled weights are never loaded; save the model with safetensors")
    assert "ance checkpoint convert" in hint


def test_weights_that_are_cut_short(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    what, hint = refused(copied)
    assert what.startswith(f"{copied}: the model does not load (")
    assert hint == "copy the whole folder again"


def test_a_config_that_is_not_one(copied):
    (copied / "config.json").write_text('{"model_type": "nothing-known"}')
    assert refused(copied)[0].startswith(f"{copied}/config.json: cannot be read (")


def test_a_tokenizer_without_padding(copied):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copied)
    what, _ = refused(copied)
    assert what == f"{copied}: the tokenizer has no padding token, which batches need"


def test_more_than_one_label(tmp_path):
    folder = make_cross_encoder(tmp_path / "three", labels=3)
    what, hint = refused(folder)
    assert what == (
        f"{folder}/config.json: BertForSequenceClassification with 3 labels; "
        "expected one label, the score of the pair"
    )
    assert "cross-encoder" in hint


def test_a_plain_encoder(backbone):
    assert "config.json: BertModel with 2 labels" in refused(backbone)[0]


def test_a_dual_encoder(checkpoint):
    what, hint = refused(checkpoint)
    assert what == (
        f"{checkpoint}: its modules are Transformer, Pooling, Dense, LayerNorm, "
        "expected a Transformer alone"
    )
    assert hint == "a dual encoder cannot score pairs; name a cross-encoder"


def test_a_classifier_without_weights(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["classifier.weight"], weights["bert.pooler.dense.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    what, _ = refused(copied)
    assert what == (
        f"{copied}: 2 weights are not in the file, for instance bert.pooler.dense.weight: "
        "they would keep random values"
    )


def test_weights_that_give_no_number(copied):
    weights = load_file(copied / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput) as caught:
        scorer(copied).scores(PAIRS)
    assert caught.value.what == f"{copied}: 5 of 5 scores are not finite (computed in fp32)"
