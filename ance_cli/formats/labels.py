"""Relevance labels line by line: BEIR's three columns with a header, or TREC's four."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.jsonl import read_lines, refuse

LABELS_HEADER = b"query-id\tcorpus-id\tscore\n"
"""The first line of the labels that ance writes."""


_GRADE = re.compile(r"[+-]?\d{1,10}", re.ASCII)
_LIMIT = 2**31
"""trec_eval keeps labels as C integers."""
_SHOWN = 40
"""Characters shown of a text that is no label."""


class Label(NamedTuple):
    """One line of the labels."""

    query_id: str
    doc_id: str
    relevance: int


def names_ids(column: str, second: str = "") -> bool:
    """Whether the first column is a header, judged by its name; for `id` by the second one, too."""
    name = column.strip().lower().replace("_", "-").strip("-")
    return name in ("query-id", "qid", "queryid") or (
        name == "id" and second.strip().lower() in ("text", "query", "question")
    )


def read_labels(path: Path, skipped: SkippedLines | None = None) -> Iterator[tuple[int, Label]]:
    """Yield the labels with their line numbers; nothing is kept in memory."""
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            columns = _columns(line.decode("utf-8"))
        except UnicodeDecodeError:
            refuse(BadInput(f"{where}: not valid UTF-8"), skipped)
            continue
        if number == 1 and names_ids(columns[0]):
            continue
        if len(columns) == 4:
            query_id, _, doc_id, grade = columns
        elif len(columns) == 3:
            query_id, doc_id, grade = columns
        else:
            problem = BadInput(
                f"{where}: expected 3 columns (query-id corpus-id score) or TREC's 4, "
                f"found {len(columns)}"
            )
            refuse(problem, skipped)
            continue
        if spaced := next((name for name in (query_id, doc_id) if len(name.split()) > 1), None):
            problem = BadInput(
                f"{where}: {spaced!r} cannot be an id: it contains white space",
                hint="rename the id: TREC files separate their columns by white space",
            )
            refuse(problem, skipped)
            continue
        if not _GRADE.fullmatch(grade) or abs(int(grade)) >= _LIMIT:
            expected = "a whole number" if len(grade) < 10 else f"a whole number below {_LIMIT}"
            problem = BadInput(f"{where}: the label should be {expected}, found {grade[:_SHOWN]!r}")
            refuse(problem, skipped)
            continue
        yield number, Label(query_id, doc_id, int(grade))


def _columns(line: str) -> list[str]:
    """The columns: at tabs if two or three of them separate the line, or else at white space."""
    at_tabs = [column.strip() for column in line.strip().split("\t")]
    return at_tabs if len(at_tabs) in (3, 4) and all(at_tabs) else line.split()
