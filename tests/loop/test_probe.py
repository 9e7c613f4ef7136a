import numpy as np

from ance_cli.loop.probe import DEPTH, overlap, sample, top


def test_a_sample_is_a_function_of_its_key():
    first = sample(1000, 64, 42, "queries")
    assert first.tolist() == sample(1000, 64, 42, "queries").tolist() == sorted(set(first.tolist()))
    assert first.tolist() != sample(1000, 64, 42, "passages").tolist()
    assert first.tolist() != sample(1000, 64, 43, "queries").tolist()
    assert sample(5, 64, 42, "queries").tolist() == [0, 1, 2, 3, 4]


def test_top_against_a_plain_loop_with_segments():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 4, 30)
    xq = rng.normal(size=(7, 4)).astype(np.float32)
    rows = rng.normal(size=(int(counts.sum()), 4)).astype(np.float32)
    ends = np.cumsum(counts)
    found = top(xq, rows, counts)
    for query, ranked in zip(xq, found, strict=True):
        scores = [max(float(query @ row) for row in rows[e - c : e])
                  for e, c in zip(ends, counts, strict=True)]  # fmt: skip
        expected = sorted(range(30), key=lambda place: (-scores[place], place))[:DEPTH]
        assert ranked == expected


def test_overlap():
    assert overlap([[1, 2], [3, 4]], [[2, 1], [3, 5]]) == 0.75
    assert overlap([[1, 2]], [[3, 4]]) == 0.0
    assert overlap([], []) == 1.0
