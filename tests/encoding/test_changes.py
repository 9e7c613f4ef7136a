"""`ance encode --append`: what a full encode would make, of which only the changes are encoded."""

import json
import os
import random
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import EncodeConfig
from ance_cli.encoding import tokenize
from ance_cli.encoding.blocks import BlockEncoder
from ance_cli.encoding.encode import encode
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats.atomic import partial_name
from ance_cli.formats.dataset import locate
from ance_cli.formats.embeddings import DOC_HASHES, DONE, KEPT, VECTORS, Embeddings
from ance_cli.models.checkpoint import Checkpoint
from tests.encoding.test_encode import Said
from tests.world import FILLER, TOPICS, jsonl, write_jsonl

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
    np.testing.assert_array_equal(found.doc_hashes, full.doc_hashes)
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
