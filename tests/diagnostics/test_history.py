"""How many of a generation's negatives a model still meets."""

import pytest

from ance_cli.diagnostics.history import _still_met
from tests.world import write_jsonl


def test_only_ranks_as_deep_as_the_top_and_only_pairs_that_are_looked_at(tmp_path):
    records = [
        {"query_id": "q0", "positive_id": "p", "negative_ids": ["a", "b", "c", "d"],
         "negative_ranks": [1, 2, 3, None]},
        {"query_id": "q1", "positive_id": "p", "negative_ids": ["a"], "negative_ranks": [1]},
        {"query_id": "q2", "positive_id": "p", "negative_ids": ["x", "a"]},
    ]  # fmt: skip
    write_jsonl(tmp_path / "negatives.jsonl", records)
    # c is deeper than two; a and d of q0 are met, b is not; of q2, without ranks, one of two
    top = {("q0", "p"): {"a", "d"}, ("q2", "p"): {"x"}, ("q9", "p"): {"a"}}
    assert _still_met(tmp_path / "negatives.jsonl", top) == pytest.approx(3 / 5)
    assert _still_met(tmp_path / "negatives.jsonl", {("q9", "p"): {"a"}}) is None
    assert _still_met(tmp_path / "pruned", top) is None
