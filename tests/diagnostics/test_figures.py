"""Every figure shows its data, and leaves out what is empty."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from ance_cli.diagnostics import figures

GROUPS = {"bottom": 2.0, "middle": 0.0, "top": 1.0, "head": 0.5}


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_neighbourhoods_draw_the_kinds_that_are_there():
    points = {"query": np.zeros((1, 2)), "positives": np.ones((2, 2)), "random": np.eye(2),
              "BM25 negatives": np.zeros((0, 2))}  # fmt: skip
    figure = figures.neighbourhoods([("first", points), ("second", points)])
    assert [ax.get_title() for ax in figure.axes] == ["first", "second"]
    sizes = [[len(drawn.get_offsets()) for drawn in ax.collections] for ax in figure.axes]
    assert sizes == [[2, 2, 1]] * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["query", "positives", "random"]


@pytest.mark.parametrize("size", [3, 12])
def test_projections_are_repeatable(size):
    vectors = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    first, second = (figures.project(vectors, 3) for _ in range(2))
    assert first.shape == (size, 2) and np.isfinite(first).all() and np.array_equal(first, second)


def test_long_tail():
    curves = [[3.0, 1.0, -1.0], [4.0, 0.0, -2.0]]
    figure = figures.long_tail([1, 2, 9], curves, [3.5, 0.5, -1.5], 2, {"bm25": 0.15})
    (ax,) = figure.axes
    assert [line.get_ydata().tolist() for line in ax.lines[:3]] == [*curves, [3.5, 0.5, -1.5]]
    assert labels(ax) == ["2 queries", "mean of all", "rank 2"]
    assert "bm25 15%" in ax.get_title()


def test_gradient_norms_leave_empty_groups_out():
    (ax,) = figures.gradient_norms({"rand": GROUPS, "ance": GROUPS}).axes
    assert labels(ax) == ["bottom", "top", "head"]
    assert sorted(bar.get_height() for bar in ax.patches) == [0.5, 0.5, 1, 1, 2, 2]
    along = {"bottom": [1.0, None, 3.0], "middle": [None, None, None]}
    _, right = figures.gradient_norms({"rand": GROUPS}, [5, 10, 15], along, [10]).axes
    assert labels(right) == ["bottom", "new negatives"]
    assert list(right.lines[-1].get_xdata()) == [10, 10]


def test_bars_begin_at_the_power_of_ten_below_the_least():
    (ax,) = figures.gradient_norms({"rand": GROUPS | {"bottom": 3.0, "head": 0.2}}).axes
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] == pytest.approx(0.1)
    _, right = figures.bias_and_variance({"rand": {"bias": 0.0, "variance": 1000.0}}).axes
    assert right.get_xlim()[0] == pytest.approx(100) and right.get_xlim()[1] > 1000
    (ax,) = figures.gradient_norms({"rand": dict.fromkeys(GROUPS, 0.0)}).axes
    assert ax.get_yscale() == "linear"


def test_training_curve_marks_refreshes():
    left, right = figures.training_curve(
        [1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], [2, 3], [0, 4], [0.5, 0.75], "RR@10"
    ).axes
    assert list(left.lines[0].get_ydata()) == [4.0, 3.0, 2.0, 1.0]
    assert [line.get_xdata()[0] for line in left.lines[2:]] == [2, 3]
    assert list(right.lines[0].get_ydata()) == [0.5, 0.75]
    assert right.get_ylabel() == "dev RR@10"
    assert len(figures.training_curve([1, 2], [1.0, 1.0], [], [], [], "").axes) == 1


def test_smoothing_against_a_plain_loop():
    values = np.random.default_rng(2).normal(size=200)
    padded = np.concatenate([[values[0]] * 2, values, [values[-1]] * 2])
    expected = [np.median(padded[at : at + 5]) for at in range(200)]
    assert figures._smoothed(values) == pytest.approx(expected)
    padded = np.concatenate([[values[0]] * 5, values, [values[-1]] * 5])
    expected = [padded[at : at + 11].mean() for at in range(200)]
    assert figures._moving_mean(values) == pytest.approx(expected)


def test_bias_and_variance():
    rows = {"rand": {"bias": 0.0, "variance": 2.0}, "bm25": {"bias": None, "variance": 0.5}}
    left, right = figures.bias_and_variance(rows).axes
    assert [bar.get_width() for bar in left.patches] == [0, 0]
    assert [bar.get_width() for bar in right.patches] == [2, 0.5]
    assert right.get_xscale() == "log"
    assert [text.get_text() for text in right.texts] == ["2", "0.5"]
    _, right = figures.bias_and_variance({"rand": {"bias": 0.0, "variance": 2310.4}}).axes
    assert [text.get_text() for text in right.texts] == ["2,310"]
