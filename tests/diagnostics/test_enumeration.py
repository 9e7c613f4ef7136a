"""Gradients over the whole corpus from stored vectors, against autograd on a table of encodings."""

import numpy as np
import pytest
import torch

from ance_cli.config import DiagnoseConfig
from ance_cli.diagnostics.corpus_scores import PairLoss, compute, score_gradients, weighted_sums
from ance_cli.diagnostics.pair import BM25, KINDS, Enumeration, Pair
from ance_cli.training.loss import LOSSES

NUM_DOCS, DIM, POSITIVE = 9, 5, 3
LOSS_NAMES = list(LOSSES)
CONFIG = DiagnoseConfig(depth=2, batch_size=4)


class Stored:
    """The part of `Embeddings` that is read, in two blocks."""

    def __init__(self, rows, counts):
        self.vectors = rows
        self.doc_offsets = np.concatenate([[0], np.cumsum(counts)])
        self.num_docs, self.dim = len(counts), rows.shape[1]

    def rows(self, positions):
        return self.vectors[positions].astype(np.float32)

    def blocks(self):
        half = int(self.doc_offsets[self.num_docs // 2])
        yield 0, self.vectors[:half]
        yield half, self.vectors[half:]


@pytest.fixture(params=["FirstP", "MaxP"])
def stored(request):
    rng = np.random.default_rng(5)
    counts = np.ones(NUM_DOCS, int) if request.param == "FirstP" else rng.integers(1, 4, NUM_DOCS)
    return Stored(rng.normal(size=(counts.sum(), DIM)).astype(np.float16), counts)


XQ = np.random.default_rng(6).normal(size=(2, DIM)).astype(np.float32)


def best_row(stored, query, doc):
    """The row of a document that scores best, in plain words."""
    start, stop = stored.doc_offsets[doc : doc + 2]
    rows = [stored.vectors[row].astype(np.float32) for row in range(start, stop)]
    return max(rows, key=lambda row: float(row @ query))


def test_scores_against_a_plain_loop(stored):
    scores = compute(XQ, [POSITIVE, 0], stored)
    for number, positive in enumerate([POSITIVE, 0]):
        plus = best_row(stored, XQ[number], positive)
        assert scores.positives[number] == pytest.approx(plus)
        for doc in range(NUM_DOCS):
            row = best_row(stored, XQ[number], doc)
            found = (
                array[number, doc] for array in (scores.scores, scores.nearness, scores.lengths)
            )
            assert list(found) == pytest.approx([XQ[number] @ row, plus @ row, row @ row], rel=1e-4)


def test_weighted_sums_against_a_plain_loop(stored):
    weights = np.random.default_rng(7).normal(size=(3, NUM_DOCS)).astype(np.float32)
    found = weighted_sums(weights, [0, 1, 1], XQ, stored)
    for nth, pair in enumerate([0, 1, 1]):
        expected = sum(
            weights[nth, doc] * best_row(stored, XQ[pair], doc) for doc in range(NUM_DOCS)
        )
        assert found[nth] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_score_gradients_against_differences(loss):
    def value(plus, minus):
        row = torch.tensor([[plus, minus]], dtype=torch.float64)
        return float(LOSSES[loss](row * 0.5, 1.0))

    a, b = score_gradients(1.25, np.array([0.5, 1.0, 6.0], np.float32), PairLoss(loss, 1.0, 0.5))
    for nth, minus in enumerate([0.5, 1.0, 6.0]):
        slope = (value(1.25 + 1e-6, minus) - value(1.25 - 1e-6, minus)) / 2e-6
        assert a[nth] == pytest.approx(slope, abs=1e-6)
        slope = (value(1.25, minus + 1e-6) - value(1.25, minus - 1e-6)) / 2e-6
        assert b[nth] == pytest.approx(slope, abs=1e-6)


def table_gradients(stored, query, docs, loss):
    """(N, (2 + N) d) the gradient of l with each negative, by autograd, where g(q), g(d+) and each
    g(d-) are parameters."""
    plus = torch.tensor(best_row(stored, query, POSITIVE), dtype=torch.float64)
    rows = [torch.tensor(best_row(stored, query, doc), dtype=torch.float64) for doc in docs]
    parameters = [torch.tensor(query, dtype=torch.float64), plus, *rows]
    for parameter in parameters:
        parameter.requires_grad_()
    found = []
    for row in parameters[2:]:
        scores = torch.stack([parameters[0] @ plus, parameters[0] @ row]).unsqueeze(0)
        value = LOSSES[loss](scores * 0.5, 1.0)
        parts = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat(parts).numpy())
    return np.array(found)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_moments_against_enumeration(stored, loss):
    docs = np.array([0, 1, 2, 5, 6, 7, 8])
    scores = compute(XQ, [POSITIVE, POSITIVE], stored)
    listed = {BM25: np.array([8, POSITIVE, 1, 4, 0])}
    pair = Pair.of(scores, 1, docs, listed, CONFIG, PairLoss(loss, 1.0, 0.5))
    gradients = table_gradients(stored, XQ[1], docs, loss)
    assert pair.norms == pytest.approx(np.linalg.norm(gradients, axis=1), rel=1e-4, abs=1e-5)
    assert list(pair.p) == ["rand", "nce", "ance", "bm25", "ance+rand", "oracle"]
    assert set(pair.p) == set(KINDS)
    assert sorted(docs[pair.p[BM25] > 0]) == [1, 8]
    assert sorted(docs[pair.p["ance"] > 0]) == sorted(
        sorted(docs, key=lambda doc: -XQ[1] @ best_row(stored, XQ[1], doc))[:2]
    )
    enumeration = Enumeration(pair, NUM_DOCS)
    sums = weighted_sums(enumeration.weights, [1] * len(enumeration.weights), XQ, stored)
    plus = best_row(stored, XQ[1], POSITIVE)
    moments, whole = enumeration.moments(sums, plus, float(XQ[1] @ XQ[1]))
    full = gradients.mean(0)
    assert whole == pytest.approx(full @ full, rel=1e-4)
    for kind, p in pair.p.items():
        inside = p > 0
        weighted = gradients[inside] / (len(docs) * p[inside])[:, None]
        mean = p[inside] @ weighted
        second = p[inside] @ np.square(weighted).sum(1)
        missing = mean - full
        expected = [second - mean @ mean, missing @ missing, mean @ mean]
        assert list(moments[kind]) == pytest.approx(expected, rel=1e-3, abs=1e-6), kind


def test_draws_follow_the_distribution(stored):
    docs = np.array([0, 1, 2, 5, 6, 7, 8])
    scores = compute(XQ[:1], [POSITIVE], stored)
    pair = Pair.of(scores, 0, docs, {}, CONFIG, PairLoss("nll", 1.0, 1.0))
    found = pair.draw("nce", 20_000, np.random.default_rng(0))
    for index, doc in enumerate(docs):
        assert (found.docs == doc).mean() == pytest.approx(pair.p["nce"][index], abs=0.02)
        weights = found.weights[found.docs == doc]
        if len(weights):
            assert weights == pytest.approx(1 / (7 * pair.p["nce"][index]))
