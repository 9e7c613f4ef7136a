"""All cells of the study."""

from __future__ import annotations

from benchmarks.study import arms, cost, documents, epochs, gap, later, openqa, theory
from benchmarks.study.cell import Cell, in_order


def grid() -> dict[str, Cell]:
    """Cells by name, each after those that it needs; Table 1's question comes first."""
    items = (arms, documents, openqa, gap, epochs, theory, later, cost)
    return in_order(cell for item in items for cell in item.cells())
