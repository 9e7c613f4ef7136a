"""Relevance labels line by line: BEIR's three columns with a header, or TREC's four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.jsonl import read_lines, refuse

LABELS_HEADER = b"query-id\tcorpus-id\tscore\n"
"""The first line of the labels that ance writes."""


class Label(NamedTuple):
    """One line of the labels."""

    query_id: str
    doc_id: str
    relevance: int


def read_labels(path: Path, skipped: SkippedLines | None = None) -> Iterator[tuple[int, Label]]:
    """Yield the labels with their line numbers; nothing is kept in memory."""
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            columns = line.decode("utf-8").split()
        except UnicodeDecodeError:
            refuse(BadInput(f"{where}: not valid UTF-8"), skipped)
            continue
        if number == 1 and columns[0].lower().replace("_", "-") in ("query-id", "qid", "queryid"):
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
        try:
            label = Label(query_id, doc_id, int(grade))
        except ValueError:
            problem = BadInput(f"{where}: the label should be a whole number, found {grade!r}")
            refuse(problem, skipped)
            continue
        yield number, label
