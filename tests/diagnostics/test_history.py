"""The share of a generation's negatives that a model ranks high at test time."""

import pytest

from ance_cli.diagnostics.history import _test_time_share
from tests.world import write_jsonl


def test_only_ranks_as_deep_as_the_top_and_only_the_sampled_pairs(tmp_path):
    records = [
        {"query_id": "q0", "positive_id": "p", "negative_ids": ["a", "b", "c", "d"],
         "negative_ranks": [1, 2, 3, None]},
        {"query_id": "q1", "positive_id": "p", "negative_ids": ["a"], "negative_ranks": [1]},
        {"query_id": "q2", "positive_id": "p", "negative_ids": ["x", "a"]},
    ]  # fmt: skip
    negatives = tmp_path / "negatives.jsonl"
    write_jsonl(negatives, records)
    # c is deeper than two; a and d of q0 count, b does not; of q2, without ranks, one of two
    top = {("q0", "p"): {"a", "d"}, ("q2", "p"): {"x"}, ("q9", "p"): {"a"}}
    assert _test_time_share(negatives, top) == pytest.approx(3 / 5)
    assert _test_time_share(negatives, {("q9", "p"): {"a"}}) is None
    assert _test_time_share(tmp_path / "pruned", top) is None
