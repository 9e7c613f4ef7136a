"""All cells of the study."""

from __future__ import annotations

from tests.benchmarks.study import arms
from tests.benchmarks.study.cell import Cell, in_order


def grid() -> dict[str, Cell]:
    """Cells by name, each after those that it needs."""
    return in_order(arms.cells())
