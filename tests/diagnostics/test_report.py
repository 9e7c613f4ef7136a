"""From pairs to tables."""

import numpy as np
import pytest

from ance_cli.diagnostics.examples import Gradients
from ance_cli.diagnostics.pair import Draws
from ance_cli.diagnostics.pair_analysis import PairAnalysis, Sampling
from ance_cli.diagnostics.pair_set import ranks_to_show
from ance_cli.diagnostics.report import (
    bound,
    panels_of,
    sampler_rows,
    suspects_of,
    tail_record,
)
from ance_cli.diagnostics.theory import Moments


def analysis(name, margin=0.0, model=1.0, bm25=1.0, tail=(3.0, 1.0)):
    draws = {"rand": Draws(np.array([1, 2, 1]), np.ones(3))}
    return PairAnalysis(
        name, "p", 9, 5.0, 8, {"rand": Sampling(8, 0.25, 1.0, 2.0)}, draws, {},
        {1: 1.0, 2: 4.0}, np.array([2, 1]), np.array([5.0 + margin, 4.0]), np.array([1]),
        np.array(tail), {"model": model, "bm25": bm25}, {"uniform": 0.5, "in_batch": 0.25},
    )  # fmt: skip


def gradients(first, second, moments):
    norms = {
        doc: {"bottom": norm, "middle": 0.0, "top": 0.0, "head": 0.0, "all": norm}
        for doc, norm in ((1, first), (2, second))
    }
    return Gradients(norms, {"rand": moments}, 4.0)


def test_a_row_of_a_sampler_by_hand():
    analyses = [analysis("q0"), analysis("q1")]
    exact = [({"rand": Moments(6.0, 1.0, 3.0)}, 4.0), ({"rand": Moments(2.0, 0.0, 1.0)}, 4.0)]
    found = [
        gradients(1.0, 4.0, Moments(8.0, -0.5, 4.0)),
        gradients(2.0, 8.0, Moments(4.0, -0.5, 4.0)),
    ]
    (row,) = sampler_rows(analyses, exact, found)
    assert (row["sampler"], row["pairs"], row["support"], row["test_time"]) == ("rand", 2, 8, 0.25)
    # of the three draws two are of document 1
    assert row["parameters"]["norm"] == pytest.approx((1 + 4 + 1 + 2 + 8 + 2) / 6)
    assert row["parameters"]["median_norm"] == 2.0
    assert row["parameters"]["by_group"]["bottom"] == row["parameters"]["norm"]
    assert row["encodings"] == pytest.approx(
        {"norm": 2, "variance": 4, "bias": (0.5 / 4) ** 0.5, "squared_error": 4.5, "noise": 1}
    )
    assert row["parameters"]["bias"] == 0 and row["parameters"]["squared_error"] == 6
    assert bound(analyses, found)["spearman"] == pytest.approx(2 / 5**0.5)
    assert bound(analyses[:1], [gradients(1.0, 1.0, Moments(0, 0, 0))])["spearman"] is None


def test_suspects_and_panels():
    analyses = [analysis("a", -1.0), analysis("b", 2.0, model=0.5), analysis("c", 1.0, bm25=0.1)]
    assert [(f.query_id, doc, m) for f, doc, m in suspects_of(analyses, 2)] == [
        ("b", 2, 2.0), ("c", 2, 1.0),
    ]  # fmt: skip
    assert [(panel, f.query_id) for panel, f in panels_of(analyses)] == [
        ("example", "a"), ("win", "c"), ("loss", "b"),
    ]  # fmt: skip


def test_the_tail_ends_where_the_shortest_list_does():
    found = tail_record(
        [analysis("a", tail=(3.0, 1.0, -2.0)), analysis("b", tail=(5.0, 0.0, np.nan))],
        np.array([0, 1, 7]),
    )
    assert found["ranks"] == [1, 2] and found["mean"] == [4.0, 0.5]
    assert found["queries"][1]["above_average"] == [5.0, 0.0]


def test_ranks_to_show():
    ranks = ranks_to_show(10_000, 100)
    assert ranks[:100].tolist() == list(range(100)) and ranks[-1] == 9_999 and len(ranks) < 165
    assert ranks_to_show(5, 100).tolist() == [0, 1, 2, 3, 4]
