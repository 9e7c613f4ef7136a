"""Exact search against its brute-force twin, through faiss and through torch."""

import numpy as np
import pytest
import torch

from ance_cli.retrieval import exact
from ance_cli.retrieval.exact import exact_top_k, in_order, pool_to_documents, positive_scores


class Elsewhere(str):
    """Not called a CPU, so that the code for GPUs runs, and yet one as far as torch can tell."""

    type = "elsewhere"


DEVICES = [
    pytest.param(None, id="no device"),
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(Elsewhere("cpu"), id="code for GPUs"),
]
quiet = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_integers(*shape, seed=0, high=2):
    """Vectors whose inner products are exact in 32 bits, with many ties."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.float32)


def brute_force(xq, xb, k):
    """Top k by score, ties by position: the whole matrix at once, in 64 bits."""
    scores = xq.astype(np.float64) @ xb.astype(np.float64).T
    D = np.full((len(xq), k), -np.inf)
    positions = np.full((len(xq), k), -1)
    for query, row in enumerate(scores):
        best = sorted(range(len(xb)), key=lambda place: (-row[place], place))[:k]
        positions[query, : len(best)] = best
        D[query, : len(best)] = row[best]
    return D, positions


# ---------------------------------------------------------------- exact_top_k


@quiet
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "k", "block_docs"), [(50, 10, 7), (50, 1, 50), (300, 120, 64)])
def test_top_k_over_several_blocks(embed, device, rows, k, block_docs):
    xq, xb = normal(9, 16, seed=1), normal(rows, 16, seed=2)
    D, positions = exact_top_k(xq, embed(xb, block_docs=block_docs), k, device)
    D_twin, twin = brute_force(xq, xb, k)
    assert np.array_equal(positions, twin)
    assert np.allclose(D, D_twin, atol=1e-5)
    assert (D.dtype, positions.dtype) == (np.float32, np.int64)


@quiet
@pytest.mark.parametrize("device", DEVICES)
def test_stored_halves_are_searched_as_they_are_stored(embed, device):
    xq, xb = normal(9, 16, seed=1), normal(40, 16, seed=2)
    embeddings = embed(xb, dtype="float16")
    D, positions = exact_top_k(xq, embeddings, 8, device)
    D_twin, twin = brute_force(xq, xb.astype(np.float16), 8)
    assert np.array_equal(positions, twin)
    assert np.allclose(D, D_twin, atol=1e-5)


@quiet
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_docs", [1, 4, 100])
def test_more_places_than_rows_stay_empty(embed, device, block_docs):
    xq, xb = normal(3, 8, seed=1), normal(10, 8, seed=2)
    D, positions = exact_top_k(xq, embed(xb, block_docs=block_docs), 15, device)
    assert np.array_equal(positions, brute_force(xq, xb, 15)[1])
    assert (positions[:, 10:] == -1).all()
    assert np.isneginf(D[:, 10:]).all()


@quiet
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_docs", [7, 60])
def test_ties_are_broken_by_position(embed, device, block_docs):
    xq, xb = small_integers(20, 3, seed=1, high=3), small_integers(60, 3, seed=2)
    D, positions = exact_top_k(xq, embed(xb, block_docs=block_docs), 60, device)
    D_twin, twin = brute_force(xq, xb, 60)
    assert np.array_equal(positions, twin)
    assert np.array_equal(D, D_twin)


@quiet
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_docs", [4, 10])
def test_ties_for_the_last_places_in_blocks_that_fit(embed, device, block_docs):
    xq, xb = small_integers(20, 3, seed=1, high=3), small_integers(60, 3, seed=2)
    _, positions = exact_top_k(xq, embed(xb, block_docs=block_docs), 10, device)
    assert np.array_equal(positions, brute_force(xq, xb, 10)[1])


@quiet
@pytest.mark.parametrize("device", DEVICES)
def test_ties_for_the_last_places_in_larger_blocks(embed, device):
    for rows, k, block_docs in [(40, 10, 16), (40, 10, 40), (300, 20, 64), (1000, 150, 400)]:
        xq, xb = small_integers(20, 3, seed=1, high=3), small_integers(rows, 3, seed=2)
        D, positions = exact_top_k(xq, embed(xb, block_docs=block_docs), k, device)
        expected, _ = brute_force(xq, xb, k)  # which of the last ties are kept is not promised
        assert np.array_equal(D, expected)
        assert np.array_equal(np.take_along_axis(xq @ xb.T, positions, 1), expected)


@quiet
@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_queries_change_nothing(embed, device, monkeypatch):
    xq, embeddings = normal(11, 8, seed=1), embed(normal(30, 8, seed=2))
    whole = exact_top_k(xq, embeddings, 6, device)
    monkeypatch.setattr(exact, "_QUERY_BATCH", 4)
    D, positions = exact_top_k(xq, embeddings, 6, device)
    assert np.array_equal(positions, whole[1])
    assert np.allclose(D, whole[0], atol=1e-6)


def test_progress_hears_of_every_row_once(embed):
    heard = []
    embeddings = embed(normal(13, 4), row_counts=[2, 1, 3, 1, 4, 2], block_docs=4)
    exact_top_k(normal(2, 4), embeddings, 3, on_block=heard.append)
    assert heard == [7, 6]


def test_no_queries_find_nothing(embed):
    D, positions = exact_top_k(np.zeros((0, 4), np.float32), embed(normal(13, 4)), 3)
    assert D.shape == positions.shape == (0, 3)


# ---------------------------------------------------------------- in_order


def test_in_order_puts_empty_places_last():
    D = np.array([[1, 9, 3, 9, 3], [0, 0, -np.inf, 0, 0]], np.float32)
    positions = np.array([[4, 8, -1, 2, -1], [3, 1, -1, 0, 2]])
    scores, ordered = in_order(D, positions)
    assert ordered.tolist() == [[2, 8, 4, -1, -1], [0, 1, 2, 3, -1]]
    assert scores[0, :3].tolist() == [9, 9, 1]


# ---------------------------------------------------------------- MaxP


def brute_force_documents(xq, xb, owners, depth):
    """(scores, documents): the maximum over each document's rows, ties by position."""
    scores = xq.astype(np.float64) @ xb.astype(np.float64).T
    num_docs = owners.max() + 1
    pooled = np.stack([scores[:, owners == doc].max(1) for doc in range(num_docs)], 1)
    D = np.full((len(xq), depth), -np.inf)
    docs = np.full((len(xq), depth), -1)
    for query, row in enumerate(pooled):
        best = sorted(range(num_docs), key=lambda doc: (-row[doc], doc))[:depth]
        docs[query, : len(best)], D[query, : len(best)] = best, row[best]
    return D, docs


@pytest.mark.parametrize("depth", [1, 5, 20, 30])
@pytest.mark.parametrize("vectors", [normal, small_integers])
def test_a_document_scores_as_its_best_row(embed, depth, vectors):
    row_counts = np.random.default_rng(3).integers(1, 5, 20)
    xq, xb = vectors(12, 4, seed=1), vectors(int(row_counts.sum()), 4, seed=2)
    embeddings = embed(xb, row_counts, block_docs=6)
    found = exact_top_k(xq, embeddings, depth * embeddings.max_segments)
    D, docs = pool_to_documents(*found, embeddings.doc_of_row(), depth)
    D_twin, twin = brute_force_documents(xq, xb, embeddings.doc_of_row(), depth)
    assert np.array_equal(docs, twin)
    assert np.allclose(D, D_twin, atol=1e-5)
    assert (D.dtype, docs.dtype) == (np.float32, np.int32)


def test_empty_rows_are_no_documents():
    D = np.array([[0.5, 0.25, -np.inf, -np.inf]], np.float32)
    positions = np.array([[3, 2, -1, -1]])
    scores, docs = pool_to_documents(D, positions, np.array([0, 1, 1, 1], np.int32), 3)
    assert docs.tolist() == [[1, -1, -1]]
    assert scores[0].tolist() == [0.5, -np.inf, -np.inf]


# ---------------------------------------------------------------- positives


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_positive_scores_are_the_maximum_over_the_rows(embed, dtype):
    row_counts = [1, 3, 2, 4, 1, 1, 2]
    xq, xb = normal(4, 8, seed=1), normal(14, 8, seed=2)
    embeddings = embed(xb, row_counts, block_docs=3, dtype=dtype)
    positives = {"q0": ["d3", "d0"], "q1": ["d6"], "q3": ["d1", "d3", "d5"]}
    found = positive_scores(xq, ["q0", "q1", "q2", "q3"], positives, embeddings)
    assert list(found) == ["q0", "q1", "q2", "q3"]
    assert found["q2"] == {}
    scores = xq.astype(np.float64) @ xb.astype(dtype).astype(np.float64).T
    owners = np.repeat(np.arange(7), row_counts)
    for query, query_id in enumerate(found):
        assert list(found[query_id]) == positives.get(query_id, [])
        for doc_id, score in found[query_id].items():
            assert score == pytest.approx(scores[query, owners == int(doc_id[1:])].max(), abs=2e-6)


def test_positive_scores_are_those_of_the_search(embed):
    xq, xb = normal(3, 8, seed=1), normal(10, 8, seed=2)
    embeddings = embed(xb)
    D, positions = exact_top_k(xq, embeddings, 10)
    found = positive_scores(xq[:1], ["q"], {"q": embeddings.ids}, embeddings)["q"]
    for score, place in zip(D[0], positions[0], strict=True):
        assert found[f"d{place}"] == pytest.approx(float(score), abs=2e-6)
