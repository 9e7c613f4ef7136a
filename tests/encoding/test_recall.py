"""The recall that the summary of `encode` shows, against a twin that ranks query by query."""

import numpy as np
import pytest

from ance_cli.encoding import recall
from ance_cli.encoding.recall import recall_of_floats
from ance_cli.formats.row_format import ROW_FORMATS


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def twin(vectors, kept, queries):
    """Recall@10 of the rows that score best with each query, without itself, ties by position."""
    shares = []
    for query in queries:
        others = [row for row in range(len(vectors)) if row != query]
        exact, found = (
            sorted(others, key=lambda row: (-float(vectors[query] @ rows[row]), row))[:10]
            for rows in (vectors, kept)
        )
        shares.append(len({*exact} & {*found}) / 10)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_recall_is_that_of_the_twin(dtype):
    vectors, rows = normal(80, 16), ROW_FORMATS[dtype](16)
    found = recall_of_floats(vectors, rows)
    expected = twin(vectors, rows.floats(rows.stored(vectors)), range(80))
    assert found == pytest.approx(expected)
    assert (found < 0.8) == (dtype == "binary") and found < 1


def test_a_sample_of_the_rows_is_ranked_for_evenly_spaced_queries(monkeypatch):
    monkeypatch.setattr(recall, "_SAMPLE", 60)
    monkeypatch.setattr(recall, "_QUERIES", 25)
    vectors, rows = normal(90, 16), ROW_FORMATS["binary"](16)
    kept = rows.floats(rows.stored(vectors))
    found = recall_of_floats(vectors, rows)
    assert found == pytest.approx(twin(vectors[:60], kept[:60], range(0, 60, 3)))
    assert found != pytest.approx(twin(vectors, kept, range(0, 90, 3)))


@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_few_rows_are_all_among_the_best(count):
    assert recall_of_floats(normal(count, 4), ROW_FORMATS["binary"](4)) == 1


def test_a_lossless_format_keeps_the_ranking():
    assert recall_of_floats(normal(50, 8), ROW_FORMATS["float32"](8)) == 1
