"""What a local model writes is what a loop over its logits gives, in batches of any size."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from ance_cli.config import DeviceConfig, QueryConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage
from ance_cli.mining.sampling import keyed_generator
from ance_cli.query_generation.local_model import LocalModel
from ance_cli.query_generation.writing import INSTRUCTION, PASSAGE_ALONE, filled
from tests.world import FILLER, TOPICS, make_reader

KINDS = ["seq2seq", "causal", "chat"]
CPU = DeviceConfig(gpus="none", dtype="fp32")
TEMPLATE = (
    "{% for m in messages %}river {{ m['content'] }} river{% endfor %}"
    "{% if add_generation_prompt %} violin{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {
        kind: make_reader(tmp_path_factory.mktemp(kind), kind) for kind in ("seq2seq", "causal")
    }
    found["chat"] = shutil.copytree(found["causal"], tmp_path_factory.mktemp("chat") / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(found["chat"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(found["chat"])
    return found


def passages(count=5, seed=0):
    rng = np.random.default_rng(seed)
    words = [*TOPICS, *FILLER]
    return [
        Passage(f"d{n}", words[n], " ".join(rng.choice(words, rng.integers(1, 20))))
        for n in range(count)
    ]


def writer(folder, device=CPU, **settings):
    config = QueryConfig(model=str(folder), **{"max_new_tokens": 6, **settings})
    return LocalModel(config, device).open()


def step_by_step(folder, kind, passage, steps, choose):
    """The text of the tokens that `choose` takes from the logits of each step."""
    loader = "AutoModelForSeq2SeqLM" if kind == "seq2seq" else "AutoModelForCausalLM"
    model = getattr(transformers, loader).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = filled(PASSAGE_ALONE if kind == "seq2seq" else INSTRUCTION, *passage[1:])
    ids = (
        tokenizer(f"river {prompt} river violin", add_special_tokens=False)
        if kind == "chat"
        else tokenizer(prompt)
    )["input_ids"]
    new = []
    while len(new) < steps and 3 not in new:
        with torch.no_grad():
            if kind == "seq2seq":
                before = torch.tensor([[0, *new]])
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=before).logits
            else:
                logits = model(input_ids=torch.tensor([[*ids, *new]])).logits
        new.append(choose(logits[0, -1].double().numpy(), len(new)))
    return " ".join(tokenizer.decode(new, skip_special_tokens=True).split())


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_queries_are_those_of_a_loop(folders, kind):
    found = [written.queries for written in writer(folders[kind])(passages(), 0)]
    expected = [
        [step_by_step(folders[kind], kind, passage, 6, lambda logits, _: int(logits.argmax()))]
        for passage in passages()
    ]
    assert found == expected
    if kind != "seq2seq":  # this one's encoder hardly matters with random weights
        assert len({queries[0] for queries in found}) > 1


def drawn(seed, doc_id, draw, temperature):
    """Takes a token by going through the cumulated probabilities of one step."""
    uniforms = keyed_generator(seed, doc_id, draw).random(6)

    def choose(logits, step):
        weights = np.exp((logits - logits.max()) / temperature)
        total, at = 0.0, uniforms[step] * weights.sum()
        for token, weight in enumerate(weights):
            total += weight
            if total > at:
                return token
        raise AssertionError("no token")

    return choose


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_keyed_by_seed_passage_and_draw(folders, kind):
    settings = {"temperature": 0.7, "per_passage": 3, "seed": 5}
    found = [written.queries for written in writer(folders[kind], **settings)(passages(), 0)]
    expected = [
        [
            step_by_step(folders[kind], kind, passage, 6, drawn(5, passage.doc_id, draw, 0.7))
            for draw in range(3)
        ]
        for passage in passages()
    ]
    assert found == expected
    assert len({query for queries in found for query in queries}) > 10
    again = [written.queries for written in writer(folders[kind], **settings)(passages()[2:], 1)]
    assert again == found[3:], "neither the batch nor the place matters"


@pytest.mark.parametrize(("kind", "room"), [("seq2seq", 80), ("causal", 90)])
def test_a_long_passage_is_cut_and_a_long_title_too(folders, kind, room):
    opened = writer(folders[kind])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    long = opened.tokens(Passage("d", "comet", "river " * 500))
    assert len(long) == room
    text = tokenizer.decode(long)
    assert text.count("comet") == 1 and text.count("river") > 20
    titled = opened.tokens(Passage("d", "comet " * 500, "river " * 500))
    assert len(titled) == room and "river" in tokenizer.decode(titled)
    assert len(opened.tokens(Passage("d", "comet " * 500, ""))) <= room
    assert next(opened([Passage("d", "", "river " * 500)], 0)).queries


def test_models_that_do_not_write_and_prompts_without_room_are_refused(folders, backbone):
    with pytest.raises(BadInput, match="names the architecture BertModel; expected a language mo"):
        writer(backbone)
    with pytest.raises(BadInput, match="the prompt alone fills half of its window"):
        writer(folders["seq2seq"], prompt="river " * 50 + "{text}")
    with pytest.raises(BadInput, match="the prompt alone fills half of its window"):
        writer(folders["causal"], max_new_tokens=90)


def test_auto_is_resolved_and_other_formats_write_too(folders):
    config = QueryConfig(model=str(folders["causal"]), max_new_tokens=6)
    model = LocalModel(config, DeviceConfig(gpus="none"))
    assert model.shaping["dtype"] == "auto"
    model.open()
    assert model.shaping["dtype"] in ("fp32", "bf16")
    found = writer(folders["seq2seq"], DeviceConfig(gpus="none", dtype="bf16"), temperature=1.0)
    assert len(list(found(passages(), 0))) == 5
