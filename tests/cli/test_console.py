"""Tables as wide, and as narrow, as the terminal."""

import io

import pytest
from rich.console import Console

from ance_cli.cli import console
from ance_cli.cli.console import show_rows

ROWS = [{"source": "ann", "negatives": 12_345, "mean": 0.5}, {"source": "random", "negatives": 2}]


def shown(width, is_terminal):
    file = io.StringIO()
    show_rows(ROWS, Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
    return [line.split() for line in file.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(("width", "is_terminal"), [(80, True), (20, False)])
def test_one_line_a_row(width, is_terminal):
    assert shown(width, is_terminal) == [
        ["source", "negatives", "mean"], ["ann", "12,345", "0.5"], ["random", "2"],
    ]  # fmt: skip


def test_one_below_the_other_where_it_is_too_narrow():
    assert shown(24, True) == [
        ["source", "ann"], ["negatives", "12,345"], ["mean", "0.5"],
        ["source", "random"], ["negatives", "2"], ["mean"],
    ]  # fmt: skip


def test_small_numbers_are_not_shown_as_0():
    assert console._shown(2e-05) == "2e-05" and console._shown(0.0) == "0"
    assert console._rate(0.02, "step") == "1.2 step/min" and console._rate(0.8, "x") == "0.8 x/s"
