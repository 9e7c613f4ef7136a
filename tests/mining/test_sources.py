"""Sources besides the search, and scores, against brute force."""

import numpy as np
import pytest
import torch

from ance_cli.formats.dataset import Passage
from ance_cli.mining.rescoring import ExactScores
from ance_cli.mining.sources import neighbours
from ance_cli.mining.text_filters import PassageTexts
from ance_cli.progress import Silent
from tests.retrieval.conftest import embed  # noqa: F401 (a fixture)

SEGMENTS = {"FirstP": [1] * 30, "MaxP": [1, 3, 2] * 10}


@pytest.fixture(params=SEGMENTS)
def embedded(request, embed):  # noqa: F811
    """Embeddings of 30 documents, and the list of each document's rows."""
    counts = SEGMENTS[request.param]
    vectors = np.random.default_rng(4).standard_normal((sum(counts), 6)).astype(np.float32)
    ends = np.cumsum(counts)
    rows = [vectors[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return embed(vectors, counts, dtype="float32"), rows


def test_scores_are_the_maximum_inner_product_over_a_document_s_rows(embedded):
    embeddings, rows = embedded
    xq = np.random.default_rng(5).standard_normal((3, 6)).astype(np.float32)
    score = ExactScores(xq, ["a", "b", "c"], embeddings)
    docs = np.array([4, 0, 29, 4, 11])
    expected = [max(float(row @ xq[1]) for row in rows[doc]) for doc in docs]
    assert score("b", docs) == pytest.approx(expected, abs=1e-5)
    assert score("b", docs).dtype == np.float32
    assert score("a", docs[:0]).tolist() == []


def test_a_score_does_not_depend_on_the_other_documents(embedded):
    score = ExactScores(np.ones((1, 6), np.float32) / 3, ["a"], embedded[0])
    together = score("a", np.arange(30))
    assert [score("a", np.array([doc]))[0] for doc in range(30)] == together.tolist()


def test_neighbours_are_ranked_by_their_nearest_rows(embedded):
    embeddings, rows = embedded
    positives = {"q1": ["d7", "d2"], "q2": ["d2"], "q3": ["d28"]}
    lists = neighbours(positives, embeddings, 10, torch.device("cpu"), Silent())
    assert sorted(lists.row_of) == ["d2", "d28", "d7"]
    for doc_id in lists.row_of:
        own = rows[int(doc_id[1:])]
        near = [max((own @ rows[doc].T).ravel()) for doc in range(30)]
        docs, scores = lists.listed(doc_id)
        assert docs.tolist() == sorted(range(30), key=lambda doc: -near[doc])[:10]
        assert scores is None
    assert lists.listed("d3")[0].tolist() == []


def test_texts_are_kept_by_position():
    passages = [
        Passage("a", "Über", "ein Text"), Passage("b", "", ""), Passage("c", "", "日本 text"),
    ]  # fmt: skip
    texts = PassageTexts(iter(passages))
    for place, passage in enumerate(passages):
        assert texts.body(place) == passage.text
        assert texts.joined(place) == passage.joined(" ")
