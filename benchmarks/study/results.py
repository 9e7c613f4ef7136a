"""The file of results: one JSON line for each cell that was done, appended by the runner.

Fields that a later version adds to the measures may be missing in a line: tables then leave
a place empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from ance_cli.formats import atomic
from ance_cli.formats.ledgers import read_ledger
from benchmarks.study.cell import Cell

Result = dict[str, Any]


class Results:
    """`docs/evidence/study/results.jsonl`, which several runners may append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, result: Result) -> None:
        """Append one line, durably."""
        atomic.append_line(self.path, orjson.dumps(result))

    def of(self, cells: Iterable[Cell]) -> dict[str, Result]:
        """Cell name -> its newest line, for the cells that are done by their present recipe."""
        recipes = {cell.name: cell.recipe for cell in cells}
        lines = read_ledger(self.path)
        return {line["cell"]: line for line in lines if recipes.get(line["cell"]) == line["recipe"]}
