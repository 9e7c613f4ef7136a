"""Drift: a newer checkpoint encodes the texts of a generation's probe, and no other texts."""

import weakref

import numpy as np
import pytest

from ance_cli.config import EncodeConfig
from ance_cli.encoding.encode import encode
from ance_cli.formats.dataset import Passage, locate
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.loop import drift
from ance_cli.loop.drift import measured_overlap, probe_generation, read_probe
from ance_cli.models.checkpoint import Checkpoint

CONFIG = EncodeConfig(dtype="fp32", gpus="none")


@pytest.fixture
def probed(tmp_path, dataset, checkpoint, monkeypatch):
    """Checkpoint and dataset of a generation in `tmp_path`, whose probe has ten of 64 passages."""
    monkeypatch.setattr(drift, "NUM_PASSAGES", 10)
    given, data = Checkpoint(checkpoint), locate(dataset, "train")
    encode(given, data, tmp_path / "embeddings", CONFIG)
    vectors = Embeddings(tmp_path / "embeddings")
    probe_generation(given, data, GenerationFolder(tmp_path), vectors, 42, CONFIG)
    return given, data


def test_the_same_checkpoint_has_not_moved(tmp_path, probed):
    probe = read_probe(GenerationFolder(tmp_path))
    assert len(probe.passages) == 10 and probe.passages == sorted(probe.passages)
    assert max(max(best) for best in probe.top) < 10
    assert measured_overlap(*probed, probe, CONFIG) == 1.0


def test_no_other_text_of_the_corpus_is_kept(tmp_path, probed, monkeypatch):
    made, encoded = [], []

    class Text(str):
        """A text that can be watched."""

    class Watched(Passage):
        def joined(self, separator):
            text = Text(super().joined(separator))
            made.append(weakref.ref(text))
            return text

    class Encoder(drift.TextEncoder):
        def __call__(self, texts):
            encoded.append((len(texts), sum(text() is not None for text in made)))
            return super().__call__(texts)

    passages = [Watched(*passage) for passage in drift.read_corpus(probed[1].corpus)]
    monkeypatch.setattr(drift, "read_corpus", lambda path: iter(passages))
    monkeypatch.setattr(drift, "TextEncoder", Encoder)
    assert measured_overlap(*probed, read_probe(GenerationFolder(tmp_path)), CONFIG) == 1.0
    assert encoded[-1] == (10, 10)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"top": []}'])
def test_a_probe_that_cannot_be_read_is_none(tmp_path, content):
    assert read_probe(GenerationFolder(tmp_path)) is None
    (tmp_path / "probe.json").write_bytes(content)
    assert read_probe(GenerationFolder(tmp_path)) is None


def test_passages_of_several_segments(tmp_path, dataset, checkpoint, monkeypatch):
    """MaxP: a passage has as many rows in the generation as when it is encoded again."""
    monkeypatch.setattr(drift, "NUM_PASSAGES", 10)
    given = Checkpoint(checkpoint).with_settings(segmentation="special", passage_length=8)
    data = locate(dataset, "train")
    encode(given, data, tmp_path / "embeddings", CONFIG)
    vectors = Embeddings(tmp_path / "embeddings")
    assert np.diff(vectors.doc_offsets).max() > 1
    probe_generation(given, data, GenerationFolder(tmp_path), vectors, 42, CONFIG)
    assert measured_overlap(given, data, read_probe(GenerationFolder(tmp_path)), CONFIG) == 1.0
