"""Which vectors may meet which checkpoint, and what a search over either kind finds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ance_cli.config import IndexConfig
from ance_cli.errors import Mismatch, UsageProblem
from ance_cli.progress import Silent
from ance_cli.retrieval.dense import DenseRetriever, vector_source
from ance_cli.retrieval.faiss_index import FaissIndex
from ance_cli.retrieval.index import index


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def checkpoint(tower="t"):
    """As much of a checkpoint as the check looks at."""
    return SimpleNamespace(shown="my/ckpt", tower_hash=lambda side: tower)


def retriever(source):
    """A retriever over opened vectors, without a checkpoint to encode with."""
    made = DenseRetriever.__new__(DenseRetriever)
    made.devices = [torch.device("cpu")]
    made.embeddings = None if isinstance(source, FaissIndex) else source
    made._index = source
    made.doc_ids = source.ids
    return made


# ---------------------------------------------------------------- where the vectors are


def test_exactly_one_source_is_named(tmp_path):
    for given in [(None, None), (tmp_path, tmp_path)]:
        with pytest.raises(UsageProblem) as caught:
            vector_source(*given)
        assert caught.value.what == (
            "name the passage vectors with exactly one of --embeddings DIR and --index DIR"
        )
    assert vector_source(tmp_path, None).kind == "embeddings"
    assert vector_source(None, tmp_path).kind == "index"


def test_a_source_has_the_fingerprint_of_its_artifact(embed):
    embeddings = embed(normal(3, 4))
    source = vector_source(embeddings.folder, None)
    assert source.fingerprint == embeddings.fingerprint
    source.check(checkpoint(), "c")
    source.check(checkpoint(), None)


def test_vectors_of_another_tower_are_refused(embed):
    folder = embed(normal(3, 4)).folder
    with pytest.raises(Mismatch) as caught:
        vector_source(folder, None).check(checkpoint("0123456789abcdef"), "c")
    assert caught.value.what == (
        f"{folder}: the vectors were made by another passage encoder than my/ckpt "
        "(tower t, the checkpoint's is 0123456789ab): scores between the two mean nothing"
    )
    assert caught.value.hint == (
        "encode again: ance encode --ckpt my/ckpt --data DATASET -o DIR, "
        "with the same --passage-length"
    )


def test_vectors_of_another_corpus_are_refused(embed):
    folder = embed(normal(3, 4)).folder
    with pytest.raises(Mismatch) as caught:
        vector_source(folder, None).check(checkpoint(), "another")
    assert caught.value.what == (f"{folder}: the vectors are of another corpus than the dataset's")


def test_rounded_vectors_are_refused_where_floats_are_needed(embed, tmp_path):
    for dtype in ("float16", "float32"):
        source = vector_source(embed(normal(3, 4), dtype=dtype).folder, None)
        source.need_floats("the theory")
        assert source.rounded_to is None
    folder = embed(normal(3, 4), dtype="binary").folder
    source = vector_source(folder, None)
    assert source.rounded_to == "binary"
    with pytest.raises(Mismatch) as caught:
        source.need_floats("the theory")
    assert caught.value.what == (
        f"{folder}: the vectors were rounded to binary, and the theory needs them as the model "
        "made them"
    )
    index(folder, tmp_path / "index", IndexConfig())
    vector_source(None, tmp_path / "index").need_floats("the theory")


# ---------------------------------------------------------------- searching


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_an_index_of_rounded_vectors_finds_what_the_embeddings_do(embed, tmp_path, dtype):
    xq, embeddings = normal(15, 8, seed=1), embed(normal(20, 8, seed=2), dtype=dtype)
    index(embeddings.folder, tmp_path / "index", IndexConfig())
    D, docs = retriever(embeddings).search(xq, 6, Silent())
    D_index, docs_index = retriever(FaissIndex(tmp_path / "index")).search(xq, 6, Silent())
    assert np.array_equal(docs, docs_index)
    assert np.allclose(D, D_index, atol=1e-5)


@pytest.mark.parametrize("row_counts", [[1] * 20, [1, 3, 2, 4] * 5], ids=["FirstP", "MaxP"])
def test_an_index_finds_the_documents_that_the_embeddings_do(embed, tmp_path, row_counts):
    xb, xq = normal(sum(row_counts), 8, seed=2), normal(15, 8, seed=1)
    embeddings = embed(xb, row_counts)
    index(embeddings.folder, tmp_path / "index", IndexConfig())
    D, docs = retriever(embeddings).search(xq, 6, Silent())
    D_index, docs_index = retriever(FaissIndex(tmp_path / "index")).search(xq, 6, Silent())
    assert docs.shape == (15, 6)
    assert docs.dtype == docs_index.dtype == np.int32
    assert np.array_equal(docs, docs_index)
    assert np.allclose(D, D_index, atol=1e-5)
    owners = np.repeat(np.arange(20), row_counts)
    pooled = np.stack([(xq @ xb.T)[:, owners == doc].max(1) for doc in range(20)], 1)
    assert np.array_equal(docs, np.argsort(-pooled, 1)[:, :6])


def test_a_depth_beyond_the_documents_gives_all_of_them(embed):
    _, docs = retriever(embed(normal(6, 4), [2, 1, 3])).search(normal(2, 4, seed=1), 5, Silent())
    assert [sorted(row) for row in docs.tolist()] == [[0, 1, 2], [0, 1, 2]]
