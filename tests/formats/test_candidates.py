"""Candidates: what a search found, kept so that sampling again needs no search."""

import numpy as np
import pytest

from ance_cli.errors import BadInput
from ance_cli.formats.candidates import QUERY_IDS, ROWS, Candidates, read_candidates
from ance_cli.formats.embeddings import write_ids

FOUND = Candidates(
    ["q1", "q2", "q3"],
    np.array([[5, 2], [0, -1], [-1, -1]], np.int32),
    np.array([[0.5, 0.25], [-1.5, -np.inf], [-np.inf, -np.inf]], np.float32),
    {"q1": {"d7": 0.75, "d5": 0.5}, "q2": {}, "q3": {"d1": -2.0}},
)


def test_what_was_written_is_read_again(tmp_path):
    assert FOUND.write(tmp_path) == {"queries": 3, "depth": 2}
    found = read_candidates(tmp_path, 8)
    assert found.query_ids == FOUND.query_ids
    assert found.docs.dtype == np.int32
    assert np.array_equal(found.docs, FOUND.docs)
    assert found.scores.dtype == np.float32
    assert np.array_equal(found.scores, FOUND.scores)
    assert found.positive_scores == FOUND.positive_scores


def test_candidates_without_positive_scores(tmp_path):
    Candidates(FOUND.query_ids, FOUND.docs, FOUND.scores, {}).write(tmp_path)
    assert read_candidates(tmp_path, 8).positive_scores == {}


def test_candidates_of_no_query(tmp_path):
    Candidates([], np.zeros((0, 5), np.int32), np.zeros((0, 5), np.float32), {}).write(tmp_path)
    assert read_candidates(tmp_path, 8).docs.shape == (0, 5)


def test_parts_that_disagree_are_refused(tmp_path):
    FOUND.write(tmp_path)
    write_ids(tmp_path / QUERY_IDS, ["q1", "q2"])
    with pytest.raises(BadInput) as caught:
        read_candidates(tmp_path, 8)
    assert caught.value.what == (
        f"{tmp_path}: 2 query ids, rows of shape (3, 2) and scores of shape (3, 2) "
        "do not fit together"
    )
    assert caught.value.hint == "mine again with --force"
    FOUND.write(tmp_path)
    np.save(tmp_path / ROWS, FOUND.docs[:, :1])
    with pytest.raises(BadInput) as caught:
        read_candidates(tmp_path, 8)
    assert caught.value.what == (
        f"{tmp_path}: 3 query ids, rows of shape (3, 1) and scores of shape (3, 2) "
        "do not fit together"
    )


def test_positions_outside_the_corpus_are_refused(tmp_path):
    FOUND.write(tmp_path)
    with pytest.raises(BadInput) as caught:
        read_candidates(tmp_path, 5)
    assert caught.value.what == (
        f"{tmp_path / ROWS}: has a position outside the corpus of 5 documents"
    )
