"""Tables as wide, and as narrow, as the terminal."""

import io

import pytest
from rich.console import Console

from ance_cli.cli.console import show_rows

ROWS = [{"source": "ann", "negatives": 12_345, "mean": 0.5}, {"source": "random", "negatives": 2}]


def shown(width, is_terminal=True):
    console = Console(
        file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None
    )
    show_rows(ROWS, console)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(("width", "is_terminal"), [(80, True), (20, False)])
def test_one_line_a_row(width, is_terminal):
    lines = shown(width, is_terminal)
    if is_terminal:
        assert lines == [["source", "negatives", "mean"], ["ann", "12,345", "0.5"], ["random", "2"]]
    else:
        assert lines[0][0] == "source"


def test_one_below_the_other_where_it_is_too_narrow():
    assert shown(24) == [
        ["source", "ann"], ["negatives", "12,345"], ["mean", "0.5"],
        ["source", "random"], ["negatives", "2"], ["mean"],
    ]  # fmt: skip
