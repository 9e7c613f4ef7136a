"""The parts of the page: sections of figures, charts, tables and cases."""

from __future__ import annotations

from dataclasses import dataclass, field

from ance_cli.report.charts import Chart


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column names the row."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    text_columns: frozenset[int] = frozenset({0})
    """Columns of text, which are aligned left."""


@dataclass(frozen=True)
class Document:
    """A document of a case. `label` is None if it has no label; `title` and `text` are None if it
    is not in the corpus."""

    doc_id: str
    ranks: str
    label: int | None
    title: str | None
    text: str | None


@dataclass(frozen=True)
class Case:
    """A query on which two rankings differ."""

    query_id: str
    query: str | None
    change: str
    documents: list[Document]


@dataclass(frozen=True)
class CaseGroup:
    """Cases of one kind under a title."""

    title: str
    cases: list[Case]


@dataclass(frozen=True)
class Section:
    """One part of the page. An empty section shows only `nothing`, which says why."""

    anchor: str
    title: str
    nothing: str = ""
    text: list[str] = field(default_factory=list)
    facts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Named groups of settings or figures."""
    folded: bool = False
    """Whether the groups are collapsed until the reader opens them."""
    charts: list[Chart | None] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    cases: list[CaseGroup] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        tables = any(table.rows for table in self.tables)
        return not (self.facts or any(self.charts) or tables or self.cases)
