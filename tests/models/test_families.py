"""Each row of `tests/families.py`: our vectors are sentence-transformers', before training and
after, or the row is refused with its reason."""

from pathlib import Path

import numpy as np
import pytest

from ance_cli.call import TRUST
from ance_cli.config import ComputeConfig
from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.texts import TextEncoder
from tests.families import FAMILIES, NO_EMPTY_TEXT, REFUSED, REMOTE_CODE, library
from tests.regenerate_families import PAGE, table
from tests.world import AnceInside, make_dataset

TEXTS = {
    "short": "river granite word3",
    "plain": "the old violin",
    "long": "The old comet is a small body of ice and bread. " * 12,
    "empty title": " the comet of bread",
    "spaces": "  two  spaces\tand a tab ",
    "case": "UPPER Case Zürich naïve",
    "unicode": "東京 Ω 🦅 comet",
    "one letter": "x",
    "empty": "",
}
SIDES = {"query": "encode_query", "passage": "encode_document"}
SUPPORTED = [name for name in FAMILIES if name not in REFUSED]
MEANT = {("prompt-passage", "passage"): {"prompt": "passage: "}}
"""Prompts that version 6 of the library does not find by itself, since it looks for `document`
first, and has an empty one."""
NO_LENGTH = 1000
"""A longest text of this many tokens or more counts as none."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a row, built once."""
    root, folders = tmp_path_factory.mktemp("families"), {}

    def folder_of(name) -> Path:
        if name not in folders:
            folders[name] = root / name
            FAMILIES[name](folders[name])
        return folders[name]

    return folder_of


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The command line in a folder with a small dataset."""
    folder = tmp_path_factory.mktemp("training")
    make_dataset(folder / "data")
    return AnceInside(folder)


def texts_of(name):
    return [text for text in TEXTS.values() if text or name not in NO_EMPTY_TEXT]


def their_vectors(name, folder, side):
    """The library's vectors; for cosine they are scaled to length one, as ours are."""
    model = library(name, folder)
    vectors = getattr(model, SIDES[side])(texts_of(name), **MEANT.get((name, side), {}))
    if model.similarity_fn_name == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return vectors


def our_vectors(name, folder, side, dtype="fp32"):
    with pytest.MonkeyPatch.context() as patched:
        if name in REMOTE_CODE:
            patched.setenv(TRUST, "1")
        encoder = TextEncoder(Checkpoint(folder), side, ComputeConfig(gpus="none", dtype=dtype))
        return encoder(texts_of(name))[0]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_shows_a_wrong_encoder(built, name, side):
    """The library's vectors differ from text to text and do not depend on the batch."""
    encode = getattr(library(name, built(name)), SIDES[side])
    vectors = encode(texts_of(name))
    assert np.isfinite(vectors).all()
    alone = np.concatenate([encode([text]) for text in texts_of(name)])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    lengths = np.linalg.norm(vectors, axis=1).clip(min=1e-12)
    cosines = vectors @ vectors.T / np.outer(lengths, lengths)
    assert (cosines[~np.eye(len(vectors), dtype=bool)] < 0.9995).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SUPPORTED)
def test_our_vectors_are_the_librarys(built, name, side):
    folder = built(name)
    np.testing.assert_allclose(
        our_vectors(name, folder, side), their_vectors(name, folder, side), atol=1e-5
    )


@pytest.mark.parametrize("name", SUPPORTED)
def test_bf16_stays_near_the_librarys_vectors(built, name):
    for side in SIDES:
        ours = our_vectors(name, built(name), side, dtype="bf16")
        theirs = their_vectors(name, built(name), side)
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        kept = lengths > 0  # a text without tokens has no vector
        assert ((ours * theirs).sum(1)[kept] / lengths[kept] > 0.999).all()


def kept_of(model):
    """What training must not change, besides the prompts: similarity, truncation, lengths and
    pooling."""
    from sentence_transformers.models import Pooling

    first = model[0]
    lengths = [getattr(first, name, None) for name in ("query_length", "document_length")]
    return {
        "similarity": model.similarity_fn_name,
        "truncate_dim": model.truncate_dim,
        "lengths": [min(each or model.max_seq_length, NO_LENGTH) for each in lengths],
        "pooling": [
            (part.pooling_mode, part.include_prompt)
            for part in model.modules()
            if isinstance(part, Pooling)
        ],
    }


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_trained_checkpoint_is_the_librarys_too(built, program, monkeypatch, name):
    start = built(name)
    monkeypatch.setattr("ance_cli.models.flops.matmul_ceiling", lambda *_: 1e12)  # takes a second
    program("train-segment", "--data", "data", "--ckpt", start, "--steps", 3, "--batch-size", 4,
            "--lr", "1e-3", "--in-batch", "all", "--negatives-per-positive", 0, "--dropout", 0,
            "--dtype", "fp32", "-o", name,
            *["--trust-remote-code"][: name in REMOTE_CODE])  # fmt: skip
    trained = program.cwd / name / "latest"
    assert kept_of(library(name, trained)) == kept_of(library(name, start))
    for side in SIDES:
        theirs = their_vectors(name, trained, side)
        np.testing.assert_allclose(our_vectors(name, trained, side), theirs, atol=1e-5)
        assert np.abs(theirs - their_vectors(name, start, side)).max() > 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_reason(built, name):
    with pytest.raises(BadInput, match=REFUSED[name]):
        our_vectors(name, built(name), "query")


@pytest.mark.parametrize("name", sorted(REMOTE_CODE))
def test_code_in_a_folder_runs_only_where_it_is_trusted(built, name):
    with pytest.raises(BadInput) as problem:
        TextEncoder(Checkpoint(built(name)), "query", ComputeConfig(gpus="none"))
    assert "--trust-remote-code" in f"{problem.value.what} {problem.value.hint}"


def test_the_page_has_these_rows(built):
    """Otherwise: python -m tests.regenerate_families"""
    assert table(built) in PAGE.read_text()
