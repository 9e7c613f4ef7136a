"""`ance encode --append`: what a full encode would make, of which only the changes are encoded."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import EncodeConfig
from ance_cli.encoding import tokenize
from ance_cli.encoding.blocks import BlockEncoder
from ance_cli.encoding.encode import encode
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats.atomic import partial_name
from ance_cli.formats.dataset import locate, read_corpus
from ance_cli.formats.embeddings import DOC_HASHES, DONE, KEPT, RECALL_FIGURE, VECTORS, Embeddings
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.tokens import Tokenizer
from tests.encoding.test_encode import Said
from tests.world import FILLER, TOPICS, jsonl, tree, write_jsonl

ONE = EncodeConfig(gpus="none", dtype="fp32", output_dtype="float32")
COUNTS = ("added", "changed", "removed", "kept")
ROUNDING = 2e-4
"""A text shares its batch with others than in a full encode, so its sums have another order; the
head magnifies that."""


@pytest.fixture
def model(spread_checkpoints, monkeypatch):
    """An encoder of one segment, and blocks of seven documents."""
    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 7)
    return Checkpoint(spread_checkpoints["dot"])


def texts_of(rng, number):
    words = [rng.choice(TOPICS), f"word{number % 64}", *rng.choices(FILLER, k=rng.randint(1, 20))]
    return {"title": f"{words[0]} {number % 64}", "text": " ".join(words)}


class Corpus:
    """A corpus that is edited at random, and what a reader of two versions would say."""

    def __init__(self, folder, seed, size=40):
        self._rng, self._next = random.Random(seed), size
        self.path = folder / "corpus.jsonl"
        self.docs = {f"d{number}": texts_of(self._rng, number) for number in range(size)}
        self.write()

    def write(self):
        write_jsonl(self.path, [{"_id": name, **texts} for name, texts in self.docs.items()])
        return self

    def edit(self, add=4, change=4, remove=4, shuffle=False):
        for name in self._rng.sample(sorted(self.docs), remove):
            del self.docs[name]
        for name in self._rng.sample(sorted(self.docs), change):
            self._next += 1
            self.docs[name] = texts_of(self._rng, self._next)
        items = list(self.docs.items())
        for _ in range(add):
            self._next += 1
            new = f"d{self._next}", texts_of(self._rng, self._next)
            items.insert(self._rng.randint(0, len(items)), new)
        if shuffle:
            self._rng.shuffle(items)
        self.docs = dict(items)
        return self.write()


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path / "data", seed=5)


def run(model, output, config=ONE, **options):
    return encode(model, locate(output.parent / "data"), output, config, **options)


def same_but_for_rounding(found, full):
    """Ids, offsets and hashes are equal; vectors too, but for the order of their sums."""
    found, full = Embeddings(found), Embeddings(full)
    assert found.ids == full.ids and found.fingerprint == full.fingerprint
    np.testing.assert_array_equal(found.doc_offsets, full.doc_offsets)
    np.testing.assert_array_equal(found.doc_hashes(), full.doc_hashes())
    for (_, one), (_, other) in zip(found.blocks(), full.blocks(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING)
    assert [*found.manifest["content"]["files"]] == [*full.manifest["content"]["files"]]


@pytest.mark.parametrize("seed", range(4))
def test_an_append_is_a_full_encode(model, tmp_path, seed):
    """Random edits, twice in a row; the rows of documents that are kept are copied bit by bit."""
    corpus, output = Corpus(tmp_path / "data", seed), tmp_path / "emb"
    run(model, output)
    for round in range(2):
        before, old = dict(corpus.docs), Embeddings(output)
        rows = {name: old.vectors[place].tobytes() for place, name in enumerate(old.ids)}
        rng = random.Random(100 * seed + round)
        edits = [rng.randint(0, 9) for _ in range(3)]
        corpus.edit(*edits, shuffle=rng.random() < 0.5)
        found = run(model, output, append=True)
        same = {name for name, texts in corpus.docs.items() if before.get(name) == texts}
        assert {name: found[name] for name in COUNTS} == {
            "added": len(corpus.docs.keys() - before.keys()),
            "changed": len(corpus.docs.keys() & before.keys() - same),
            "removed": len(before.keys() - corpus.docs.keys()),
            "kept": len(same),
        }
        new = Embeddings(output)
        for place, name in enumerate(new.ids):
            assert name not in same or new.vectors[place].tobytes() == rows[name]
        run(model, tmp_path / f"full{round}")
        same_but_for_rounding(output, tmp_path / f"full{round}")
    assert run(model, output)["up_to_date"] and run(model, output, append=True)["up_to_date"]
    assert not list(tmp_path.glob(".emb*"))


def fresh_tokens(model, corpus, before):
    """The tokens of the documents that `before` does not have with their texts."""
    texts = [
        model.settings.text_of(passage)
        for passage in read_corpus(corpus.path)
        if before.get(passage.doc_id) != corpus.docs[passage.doc_id]
    ]
    return len(Tokenizer(model)(texts, "passage").ids)


def test_only_what_changed_is_encoded(model, corpus, tmp_path):
    output, before, said = tmp_path / "emb", dict(corpus.docs), Said()
    whole = run(model, output)
    corpus.edit(add=3, change=2, remove=5)
    found = run(model, output, append=True, call=Call(reporter=said))
    assert 0 < found["tokens"] == fresh_tokens(model, corpus, before) < whole["tokens"] / 4
    assert "documents: 3 added, 2 changed, 5 removed, 33 kept" in said.texts
    assert said.amount == said.total, "the bar also passes what is copied"


def test_blocks_without_a_kept_document_have_the_same_bits(model, corpus, tmp_path):
    """Two blocks are kept and two are new: a block's vectors depend on the block alone."""
    docs = corpus.docs
    corpus.docs = {name: docs[name] for name in sorted(docs)[:14]}
    corpus.write()
    run(model, tmp_path / "emb")
    corpus.docs |= {name: docs[name] for name in sorted(docs)[14:28]}
    corpus.write()
    run(model, tmp_path / "emb", append=True)
    run(model, tmp_path / "full")
    found, full = Embeddings(tmp_path / "emb"), Embeddings(tmp_path / "full")
    assert found.manifest["content"] == full.manifest["content"]


def test_a_change_that_the_encoder_does_not_see_is_none(model, corpus, tmp_path):
    """Words after the passage length, and white space."""
    first, second, *_ = corpus.docs
    corpus.docs[first]["text"] = " ".join(["bread"] * 40)
    corpus.write()
    run(model, tmp_path / "emb")
    corpus.docs[first]["text"] += " river"
    corpus.docs[second]["text"] += "  "
    corpus.write()
    found = run(model, tmp_path / "emb", append=True)
    assert [found[name] for name in COUNTS] == [0, 0, 0, 40] and found["tokens"] == 0


def test_documents_of_several_rows(model, corpus, tmp_path):
    """MaxP: a document that becomes longer or shorter has other rows."""
    model.settings = replace(
        model.settings, passage_length=8, segmentation="special", max_segments=3
    )
    run(model, tmp_path / "emb")
    for add in (5, 0):
        corpus.edit(add=add, change=8, remove=3, shuffle=True)
        found = run(model, tmp_path / "emb", append=True)
        run(model, tmp_path / f"full{add}")
        same_but_for_rounding(tmp_path / "emb", tmp_path / f"full{add}")
        assert found["kept"] > 20 and found["rows"] > found["docs"]


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_kept_rows_are_not_rounded_again(model, corpus, tmp_path, dtype):
    config = replace(ONE, output_dtype=dtype)
    made = run(model, tmp_path / "emb", config)
    old = Embeddings(tmp_path / "emb")
    rows = {name: old.vectors[place].tobytes() for place, name in enumerate(old.ids)}
    before = dict(corpus.docs)
    corpus.edit(shuffle=True)
    found = run(model, tmp_path / "emb", config, append=True)
    new = Embeddings(tmp_path / "emb")
    kept = [name for name in new.ids if before.get(name) == corpus.docs[name]]
    assert len(kept) == found["kept"] > 20
    assert all(new.vectors[new.ids.index(name)].tobytes() == rows[name] for name in kept)
    run(model, tmp_path / "full", config)
    full = Embeddings(tmp_path / "full")
    each = np.arange(new.num_rows)
    off = np.abs(new.rows(each) - full.rows(each))
    assert (off > 0).sum(1).max() <= 1 if dtype == "binary" else off.max() < 2e-2
    assert found.get(RECALL_FIGURE) == made.get(RECALL_FIGURE), "measured where all are floats"


def test_the_recall_of_a_first_block_that_is_all_new_is_measured(model, corpus, tmp_path):
    config = replace(ONE, output_dtype="binary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "BLOCK_DOCS", 30)
        run(model, tmp_path / "emb", config)
        corpus.edit(add=40, change=40, remove=0)
        found = run(model, tmp_path / "emb", config, append=True)
        full = run(model, tmp_path / "full", config)
    assert found["kept"] == 0 and found[RECALL_FIGURE] == full[RECALL_FIGURE] < 1


def test_queries(model, tmp_path, dataset):
    config = replace(ONE, side="query")
    run(model, tmp_path / "emb", config)
    queries = jsonl(dataset / "queries.jsonl")[3:]
    queries[0]["text"] = "violin bread"
    write_jsonl(dataset / "queries.jsonl", [*queries, {"_id": "new", "text": "comet"}])
    found = run(model, tmp_path / "emb", config, append=True)
    assert [found[name] for name in COUNTS] == [1, 1, 3, 28]
    run(model, tmp_path / "full", config)
    same_but_for_rounding(tmp_path / "emb", tmp_path / "full")


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_shards(model, corpus, tmp_path, order):
    output = tmp_path / "emb"
    run(model, output)
    corpus.edit()
    whole = run(model, shutil.copytree(output, tmp_path / "at-once"), append=True)
    for nth, number in enumerate(order):
        found = run(model, output, append=True, shard=(number, 2))
        assert {name: found[name] for name in COUNTS} == {name: whole[name] for name in COUNTS}
        assert ("blocks_left" in found) == (nth == 0)
    same_but_for_rounding(output, tmp_path / "at-once")
    assert (
        Embeddings(output).manifest["content"]
        == (Embeddings(tmp_path / "at-once").manifest["content"])
    )


@pytest.mark.long
@pytest.mark.slow
def test_worker_processes(model, corpus, tmp_path):
    run(model, tmp_path / "emb")
    corpus.edit()
    shutil.copytree(tmp_path / "emb", tmp_path / "at-once")
    run(model, tmp_path / "at-once", append=True)
    run(model, tmp_path / "emb", replace(ONE, cpu_workers=2), append=True)
    assert (
        Embeddings(tmp_path / "emb").manifest["content"]
        == (Embeddings(tmp_path / "at-once").manifest["content"])
    )


def test_without_an_output_every_document_is_encoded(model, corpus, tmp_path):
    said = Said()
    found = run(model, tmp_path / "emb", append=True, call=Call(reporter=said))
    assert f"{tmp_path / 'emb'}: is new, so every document is encoded" in said.texts
    assert found["docs"] == 40 and "kept" not in found
    run(model, tmp_path / "full")
    assert tree(tmp_path / "emb").keys() == tree(tmp_path / "full").keys()
    assert (
        Embeddings(tmp_path / "emb").manifest["content"]
        == (Embeddings(tmp_path / "full").manifest["content"])
    )


def test_a_reader_of_the_old_folder_goes_on(model, corpus, tmp_path):
    run(model, tmp_path / "emb")
    reader = Embeddings(tmp_path / "emb")
    before = np.array(reader.vectors)
    corpus.edit()
    run(model, tmp_path / "emb", append=True)
    after = np.concatenate([vectors for _, vectors in reader.blocks()])
    np.testing.assert_array_equal(before, after)


# ---------------------------------------------------------------- refused


def refused(kind, words, *arguments, **options):
    with pytest.raises(kind, match=words) as caught:
        run(*arguments, append=True, **options)
    return caught.value


def test_other_settings_are_refused(model, corpus, tmp_path, two_towers):
    output = tmp_path / "emb"
    run(model, output)
    corpus.edit()
    before = tree(output)
    for other, config, words in (
        (Checkpoint(two_towers), ONE, "tower"),
        (model, replace(ONE, output_dtype="int8"), 'output_dtype "float32" -> "int8"'),
        (model, replace(ONE, dtype="bf16"), 'dtype "fp32" -> "bf16"'),
    ):
        problem = refused(Mismatch, words, other, output, config)
        assert "make it again with --force instead of --append" in problem.hint
    model.settings = replace(model.settings, passage_length=9)
    refused(Mismatch, "passage_length 24 -> 9", model, output)
    assert tree(output) == before and not partial_name(output).exists()


def test_the_number_format_that_auto_takes_must_be_the_same(model, corpus, tmp_path, monkeypatch):
    run(model, tmp_path / "emb")
    corpus.edit()
    monkeypatch.setattr("ance_cli.models.devices.choose_dtype", lambda dtype, device: "bf16")
    auto = replace(ONE, dtype="auto")
    refused(Mismatch, 'dtype "fp32" -> "bf16"', model, tmp_path / "emb", auto)


def test_append_and_force_are_opposites(model, corpus, tmp_path):
    refused(UsageProblem, "--append with --force", model, tmp_path / "emb", call=Call(force=True))


def test_a_folder_that_does_not_know_its_texts_is_refused(model, corpus, tmp_path):
    """As earlier versions made them, which are up to date without --append."""
    output = tmp_path / "emb"
    run(model, output)
    path = output / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["content"]["doc_hashes_xxh3"], manifest["content"]["files"][DOC_HASHES]
    path.write_text(json.dumps(manifest))
    (output / DOC_HASHES).unlink()
    assert run(model, output)["up_to_date"] and Embeddings(output).num_docs == 40
    corpus.edit()
    problem = refused(Mismatch, "did not note of which texts the vectors are", model, output)
    assert "--force instead of --append" in problem.hint


@pytest.mark.parametrize("name", [VECTORS, DOC_HASHES, "ids.txt", "doc_offsets.npy"])
def test_a_damaged_folder_is_refused_and_stays_as_it_is(model, corpus, tmp_path, name):
    output = tmp_path / "emb"
    run(model, output)
    whole = (output / name).read_bytes()
    data = bytearray(whole)
    data[-2] ^= 1
    (output / name).write_bytes(data)
    corpus.edit(add=1, change=0, remove=0)
    before = tree(output)
    refused(BadInput, "is damaged|does not cover", model, output)
    assert tree(output) == before
    assert partial_name(output).exists() == (name == VECTORS), "the blocks before the damage"
    (output / name).write_bytes(whole)
    assert run(model, output, append=True)["kept"] == 40


# ---------------------------------------------------------------- interruptions


class PowerCut(Exception):
    pass


def cut_after(monkeypatch, blocks):
    """End the process's work with the block after `blocks` others."""
    real, seen = BlockEncoder._encode, []

    def encode_block(self, *arguments):
        seen.append(arguments[0])
        if len(seen) > blocks:
            raise PowerCut
        return real(self, *arguments)

    monkeypatch.setattr(BlockEncoder, "_encode", encode_block)
    return seen


def test_an_interrupted_update_continues(model, corpus, tmp_path):
    output = tmp_path / "emb"
    run(model, output)
    corpus.edit()
    before = tree(output)
    run(model, shutil.copytree(output, tmp_path / "at-once"), append=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 3)
        run(model, output, append=True)
    assert tree(output) == before
    done = int((np.load(partial_name(output) / DONE)["rows"] >= 0).sum())
    with pytest.MonkeyPatch.context() as patch:
        seen = cut_after(patch, 100)
        run(model, output, append=True)
    assert done >= 2 and len(seen) == 6 - done
    assert (
        Embeddings(output).manifest["content"]
        == (Embeddings(tmp_path / "at-once").manifest["content"])
    )


@pytest.mark.parametrize("blocks", [0, 3])
def test_an_update_to_a_corpus_that_is_gone_is_given_up(model, corpus, tmp_path, blocks):
    output = tmp_path / "emb"
    run(model, output)
    corpus.edit()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, blocks)
        run(model, output, append=True)
    corpus.edit()
    refused(Mismatch, "exists as an unfinished embeddings", model, output, shard=(1, 2))
    run(model, output, append=True)
    run(model, tmp_path / "full")
    same_but_for_rounding(output, tmp_path / "full")


def test_a_full_encode_of_another_corpus_is_not_given_up(model, corpus, tmp_path):
    """It may have taken hours."""
    output = tmp_path / "emb"
    run(model, output)
    corpus.edit()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 3)
        run(model, output, call=Call(force=True))
    assert not (partial_name(output) / KEPT).exists()
    corpus.edit()
    refused(Mismatch, "exists as an unfinished embeddings", model, output)
