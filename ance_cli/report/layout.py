"""What the page is made of: sections of figures, charts, tables and cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ance_cli.report.charts import Chart


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column names the row. `words` are the columns of text."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Section:
    """One part of the page. What is empty is not there, and `nothing` says why."""

    anchor: str
    title: str
    nothing: str = ""
    text: list[str] = field(default_factory=list)
    facts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Named groups of settings or figures."""
    charts: list[Chart | None] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        tables = any(table.rows for table in self.tables)
        return not (self.facts or any(self.charts) or tables or self.cases)
