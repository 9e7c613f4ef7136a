"""Answers are those of a search by hand over all spans, of transformers' own decoding of DPR's
reader, and of greedy generation step by step."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ance_cli.config import EncodeConfig, ReadConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, read_corpus, read_queries
from ance_cli.models.extractive_reader import _whole_words, _Window, best_span
from ance_cli.models.generative_reader import PROMPT, PROMPT_PASSAGE
from ance_cli.models.reader import open_reader, reader_fingerprint, reader_kind
from tests.world import FILLER, TOPICS, make_reader

KINDS = ["dpr", "extractive", "seq2seq", "causal"]
WORDS = [*TOPICS, *FILLER, *(f"word{number}" for number in range(20))]
QUESTION = "river word1 with the old violin"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make_reader(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def copied(tmp_path, folders):
    return lambda kind: shutil.copytree(folders[kind], tmp_path / "copied")


def opened(folder, dtype="fp32", answer_tokens=0, batch_tokens=0):
    compute = EncodeConfig(gpus="none", dtype=dtype, batch_tokens=batch_tokens)
    return open_reader(folder, ReadConfig(answer_tokens=answer_tokens), compute)


def passages(count=6, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Passage(f"d{n}", f"{WORDS[n]} {n}", " ".join(rng.choice(WORDS, rng.integers(1, longest))))
        for n in range(count)
    ]


def test_best_span_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(50):
        size, longest = int(rng.integers(1, 12)), int(rng.integers(1, 15))
        start, end = rng.normal(size=(2, size)).astype(np.float32)
        spans = [(i, j) for i in range(size) for j in range(i, min(i + longest, size))]
        expected = max(spans, key=lambda span: start[span[0]] + end[span[1]])
        score, *found = best_span(start, end, longest)
        assert tuple(found) == expected
        assert score == pytest.approx(start[expected[0]] + end[expected[1]])


# ---------------------------------------------------------------- extractive


def spans_by_hand(folder, texts, length, overlap, longest):
    """(score, place, words) of every span of every window, each window by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    question = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    for place, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        words = text.split()
        room = length - len(question) - 3
        at = 0
        while True:
            part = ids[at : at + room]
            row = [2, *question, 3, *part, 3]
            types = [0] * (len(question) + 2) + [1] * (len(part) + 1)
            with torch.no_grad():
                out = model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([types]))
            start, end = out.start_logits[0].numpy(), out.end_logits[0].numpy()
            first = len(question) + 2
            for i in range(len(part)):
                for j in range(i, min(i + longest, len(part))):
                    score = start[first + i] + end[first + j] - start[0] - end[0]
                    yield float(score), place, " ".join(words[at + i : at + j + 1])
            if at + room >= len(ids):
                break
            at += room - overlap


@pytest.mark.parametrize(("longest_text", "answer_tokens"), [(40, 0), (40, 2), (400, 5)])
def test_an_extractive_answer_is_the_best_span_of_all_windows(folders, longest_text, answer_tokens):
    found = passages(longest=longest_text, seed=answer_tokens)
    texts = [passage.text for passage in found]
    spans = spans_by_hand(folders["extractive"], texts, 128, 32, answer_tokens or 30)
    score, place, text = max(spans, key=lambda span: span[0])
    answer = opened(folders["extractive"], answer_tokens=answer_tokens)(QUESTION, found)
    assert (answer.text, answer.place) == (text, place)
    assert answer.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("kind", ["dpr", "extractive"])
def test_batches_change_no_answer(folders, kind):
    found = passages(longest=300)
    whole, one_by_one = (opened(folders[kind], batch_tokens=size) for size in (100_000, 1))
    for passage in found:
        asked = [*found, passage]
        ours, theirs = whole(QUESTION, asked), one_by_one(QUESTION, asked)
        # the appended passage ties with its original: the last bits of the two scores, which depend
        # on the shapes of the batches and on the number of threads, decide between them
        assert (ours.text, asked[ours.place]) == (theirs.text, asked[theirs.place])
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


# ---------------------------------------------------------------- DPR


@pytest.mark.parametrize("longest", [0, 3])
def test_dprs_answer_is_transformers_own_best_span(folders, longest):
    found = [*passages(8), Passage("d", "", "violin with the old bread")]  # one without a title
    tokenizer = transformers.DPRReaderTokenizerFast.from_pretrained(folders["dpr"])
    model = transformers.DPRReader.from_pretrained(folders["dpr"])
    inputs = tokenizer(
        QUESTION,
        [passage.title for passage in found],
        [passage.text for passage in found],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**inputs)
    best = tokenizer.decode_best_spans(
        inputs, output, num_spans=1, max_answer_length=longest or 10, num_spans_per_passage=1
    )[0]
    answer = opened(folders["dpr"], answer_tokens=longest)(QUESTION, found)
    assert (answer.text, answer.place) == (best.text, best.doc_id)
    assert answer.score == pytest.approx(float(best.relevance_score), abs=1e-4)


def test_dpr_reads_a_long_passage_to_its_end(folders):
    """The window with the highest relevance decides, wherever it is in the passage."""
    reader = opened(folders["dpr"])
    long = Passage("d", "bread", " ".join(np.random.default_rng(4).choice(WORDS, 500)))
    windows = list(reader._windows(QUESTION, [long]))
    covered = {span for window in windows for span in window.offsets}
    assert len(covered) == 500 and len(windows) > 5
    assert all(len(window.inputs["input_ids"]) <= 128 for window in windows)
    stretches = [long.text[w.offsets[0][0] : w.offsets[-1][1]] for w in windows]
    alone = [reader(QUESTION, [Passage("d", "bread", text)]) for text in stretches]
    best = max(alone, key=lambda answer: answer.score)
    found = reader(QUESTION, [long])
    assert found.text == best.text and found.score == pytest.approx(best.score, abs=1e-4)


def test_a_span_is_widened_to_whole_words():
    offsets = [(0, 3), (3, 6), (7, 9), (9, 10), (10, 13)]  # "unlike life's"
    window = _Window(0, {}, 0, offsets, [0, 0, 1, 2, 3])
    assert _whole_words(window, 1, 1) == (0, 6)
    assert _whole_words(window, 0, 2) == (0, 9)
    assert _whole_words(window, 2, 2) == (7, 9)


# ---------------------------------------------------------------- generated


def greedy(folder, kind, prompt, steps):
    """Token after token: (ids, log-probability)."""
    loader = "AutoModelForSeq2SeqLM" if kind == "seq2seq" else "AutoModelForCausalLM"
    model = getattr(transformers, loader).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"]
    written, score = [], 0.0
    while len(written) < steps and 3 not in written:
        with torch.no_grad():
            if kind == "seq2seq":
                before = torch.tensor([[0, *written]])
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=before).logits
            else:
                logits = model(input_ids=torch.tensor([[*ids, *written]])).logits
        likely = logits[0, -1].log_softmax(-1)
        written.append(int(likely.argmax()))
        score += float(likely.max())
    return tokenizer.decode(written, skip_special_tokens=True), score


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_generation_is_greedy_after_the_prompt(folders, kind):
    found = passages(2, longest=10)
    texts = [f"{passage.title}: {passage.text}" for passage in found]
    prompt = PROMPT.format(
        passages="".join(
            PROMPT_PASSAGE.format(rank=rank, passage=text) for rank, text in enumerate(texts, 1)
        ),
        question=QUESTION,
    )
    text, score = greedy(folders[kind], kind, prompt, 6)
    answer = opened(folders[kind], answer_tokens=6)(QUESTION, found)
    assert answer.text == text and answer.place is None
    assert answer.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("kind", "room"), [("seq2seq", 80), ("causal", 96 - 6)])
def test_the_prompt_holds_as_many_passages_as_there_is_room_for(folders, kind, room):
    reader = opened(folders[kind], answer_tokens=6)
    texts = ["river " * 12, "violin " * 100, "comet " * 5]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    prompt = tokenizer.decode(reader._prompt(QUESTION, texts))
    assert prompt.count("river") == 12 + 1  # the question has one
    assert 20 < prompt.count("violin") - 1 < 100 and "comet" not in prompt
    assert QUESTION in prompt
    assert len(reader._prompt(QUESTION, texts)) == room
    assert reader(QUESTION, [Passage("d", "", text) for text in texts]) is not None
    few = reader._prompt(QUESTION, ["comet"])
    assert len(few) < room
    assert len(reader._prompt("river " * 500, texts)) <= room


@pytest.mark.parametrize("kind", KINDS)
def test_questions_that_were_read_in_part_are_counted(folders, kind):
    reader = opened(folders[kind], answer_tokens=6)
    short = [Passage("d", "river", "bread")]
    reader(QUESTION, short)
    assert reader.num_cut == 0
    reader("river " * 200, short)
    assert reader.num_cut == 1
    reader(QUESTION, [Passage("d", "violin " * 200, "bread")])
    assert reader.num_cut == 1 + (kind != "extractive"), "it reads no title of a passage with text"


def test_a_chat_model_gets_its_template(copied):
    folder = copied("causal")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}river {{ m['content'] }} river{% endfor %}"
        "{% if add_generation_prompt %} violin{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    ids = opened(folder)._prompt("comet", ["bread"])
    words = tokenizer.decode(ids).split()
    assert words[0] == "river" and words[-2:] == ["river", "violin"]
    assert 2 not in ids  # the template brings its own special tokens


def test_the_prompt_stands_in_the_docs():
    shown = PROMPT.format(
        passages="".join(
            PROMPT_PASSAGE.format(rank=rank, passage="TITLE: TEXT") for rank in (1, 2)
        ),
        question="QUESTION",
    )
    assert shown in (Path(__file__).parents[2] / "docs" / "explanations" / "method.md").read_text()


# ---------------------------------------------------------------- what is refused, and edges


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_fingerprints_and_passages_without_text(folders, kind, copied):
    assert reader_kind(folders[kind]) == kind
    reader = opened(folders[kind])
    assert reader(QUESTION, []) is None
    assert reader(QUESTION, [Passage("d", "", "")]) is None
    titled = reader(QUESTION, [Passage("d", "", ""), Passage("e", "granite comet", "")])
    if kind in ("dpr", "extractive"):
        assert titled.place == 1 and titled.text in ("granite", "comet", "granite comet")
    assert opened(folders[kind], "bf16")(QUESTION, passages()) is not None
    before = reader_fingerprint(folders[kind])
    folder = copied(kind)
    assert reader_fingerprint(folder) == before
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 99}))
    assert reader_fingerprint(folder) != before


def test_a_folder_that_is_no_reader_is_refused(backbone, copied):
    with pytest.raises(BadInput, match="names the architecture BertModel; expected a reader"):
        reader_kind(backbone)
    folder = copied("extractive")
    (folder / "model.safetensors").write_bytes((backbone / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match="weights are not in the file, for instance qa_outputs"):
        opened(folder)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(BadInput, match="the reader does not load"):
        opened(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="no weights in safetensors format"):
        opened(folder)


def test_the_fingerprint_needs_no_torch(folders):
    check = (
        "import sys, pathlib; from ance_cli.models.reader import reader_fingerprint as f; "
        f"f(pathlib.Path({str(folders['dpr'])!r})); print('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["dpr", "extractive"])
def test_real_papers_are_read_whole_and_answers_stand_in_them(
    test_data, test_weights, tmp_path, kind
):
    """TinyBERT's word pieces, a random head, papers of thousands of words."""
    backbone = test_weights / "tinybert-4L-312-ner"
    config = transformers.AutoConfig.from_pretrained(backbone)
    torch.manual_seed(0)
    if kind == "dpr":
        model = transformers.DPRReader(transformers.DPRConfig(**config.to_dict()))
    else:
        model = transformers.BertForQuestionAnswering.from_pretrained(backbone, num_labels=2)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path)
    papers = list(itertools.islice(read_corpus(test_data / "covidqa" / "corpus.jsonl"), 2))
    question = next(iter(read_queries(test_data / "covidqa" / "queries.jsonl").values()))
    reader = opened(tmp_path)
    windows = list(reader._windows(question, papers))
    for place, paper in enumerate(papers):
        own = [window for window in windows if window.place == place]
        covered = np.zeros(len(paper.text), bool)
        for window in own:
            assert len(window.inputs["input_ids"]) <= reader.length
            for begin, end in window.offsets:
                covered[begin:end] = True
        missed = {letter for letter, seen in zip(paper.text, covered, strict=True) if not seen}
        assert len(own) > 5 and not any(letter.isalnum() for letter in missed)
    answer = reader(question, papers)
    at = papers[answer.place].text.find(answer.text)
    text = f" {papers[answer.place].text} "
    assert at >= 0 and answer.text
    if answer.text[0].isalnum():  # not within a word
        found = re.finditer(re.escape(answer.text), text[1:])
        assert any(not text[match.start()].isalnum() for match in found)
