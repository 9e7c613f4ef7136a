"""DPR's files: reads training rows (one JSON list of a gigabyte or more, row by row), the passages
of Wikipedia (`psgs_w100.tsv`) and questions with answers (`nq-test.qa.csv`); writes the input of
DPR's reader."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Query, checked_id
from ance_cli.formats.jsonl import refuse
from ance_cli.formats.labels import Label
from ance_cli.interop.delimited import tab_rows
from ance_cli.interop.records import (
    Head,
    Negative,
    Part,
    Record,
    Role,
    answers_metadata,
    content_id,
    file_part,
    text_or_number,
)
from ance_cli.interop.table_files import json_rows

_PASSAGE_COLUMNS = ["id", "text", "title"]
_NEGATIVE_FIELDS = ("hard_negative_ctxs", "negative_ctxs")
_STRING = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_LIST_OF_STRINGS = re.compile(
    rf"\s*\[\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*,?\s*)?\]\s*", re.DOTALL
)


def recognise(path: Path, head: Head) -> Part | None:
    """Recognises the header, a list in the answers' column, or a file that is one JSON list."""
    if head.columns == _PASSAGE_COLUMNS or path.name.lower().startswith("psgs_"):
        return file_part(path, Role.DOCUMENTS, "DPR passages (id, text, title)", passages)
    if len(head.columns) == 2 and head.columns[1].lstrip(' "')[:1] == "[":
        what = "DPR questions (text, list of answers)"
        return file_part(path, Role.QUERIES, what, questions)
    if head.first.lstrip()[:1] == "[":
        return file_part(path, Role.ROWS, "DPR rows (one JSON list)", rows, by_row=True)
    return None


def is_other_list(head: Head) -> bool:
    """Whether a file is a JSON list whose first lines show fields, and none of DPR's contexts."""
    start = " ".join(head.lines)
    has_fields = re.search(r'"\s*:', start) is not None
    return start.lstrip()[:1] == "[" and has_fields and '"positive_ctxs"' not in start


def rows(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`[{question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs}, ...]`.

    The id of a question is the hash of its text. The id of a context is its `passage_id` (NQ) or
    `psg_id` (TriviaQA), otherwise the hash of title and text. Rows are numbered from 1.
    """
    for number, row in json_rows(path):
        where = f"{path}: row {number}"
        try:
            if not isinstance(row, dict):
                raise BadInput(f"{where}: expected an object, found {type(row).__name__}")
            text = row.get("question")
            if not isinstance(text, str) or not text.strip():
                raise BadInput(
                    f"{where}: 'question' should be a string that is not empty; "
                    f"the row has {', '.join(row) or 'no fields'}"
                )
            query = Query(content_id(text), text, answers_metadata(row.get("answers"), where))
            positives = _contexts(row, "positive_ctxs", where)
            negatives = {field: _contexts(row, field, where) for field in _NEGATIVE_FIELDS}
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        for passage in (*positives, *(passage for each in negatives.values() for passage in each)):
            yield number, passage
        yield number, query
        for positive in positives:
            yield number, Label(query.query_id, positive.doc_id, 1)
        for positive in positives:
            for field, found in negatives.items():
                for passage in found:
                    yield number, Negative(query.query_id, positive.doc_id, passage.doc_id, field)


def _contexts(row: dict[str, Any], field: str, where: str) -> list[Passage]:
    found = row.get(field) or []
    if not isinstance(found, list):
        raise BadInput(f"{where}: {field!r} should be a list, found {type(found).__name__}")
    passages = []
    for context in found:
        text = context.get("text") if isinstance(context, dict) else None
        if not isinstance(text, str):
            raise BadInput(f"{where}: {field!r} should contain objects with title and text")
        title = text_or_number(context.get("title"), f"{where}: 'title'")
        ids = (context.get(name) for name in ("passage_id", "psg_id"))
        own = text_or_number(next((each for each in ids if each is not None), None), f"{where}: id")
        doc_id = checked_id(own, where) if own else content_id(title, text)
        passages.append(Passage(doc_id, title, text))
    return passages


def passages(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`id <tab> text <tab> title`, with a header and CSV quotes."""
    for number, columns in tab_rows(path, _PASSAGE_COLUMNS, skipped):
        if number == 1 and columns == _PASSAGE_COLUMNS:
            continue
        try:
            doc_id = checked_id(columns[0], f"{path}:{number}")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, Passage(doc_id, columns[2], columns[1])


def questions(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`question <tab> ['answer', ...]`, with CSV quotes; the id is the hash of the question."""
    for number, (text, answers) in tab_rows(path, ["question", "answers"], skipped):
        where = f"{path}:{number}"
        try:
            if not text.strip():
                raise BadInput(f"{where}: the question is empty")
            metadata = {"answers": answers_in(answers, where)}
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, Query(content_id(text), text, metadata)


def answers_in(text: str, where: str) -> list[str]:
    """The strings of a Python list of strings.

    Only string literals are evaluated: the text must first match a pattern that allows nothing
    else.
    """
    if not _LIST_OF_STRINGS.fullmatch(text):
        start = text[:60]
        raise BadInput(f"{where}: expected answers like ['one', 'two'], found {start!r}")
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError) as error:  # an invalid escape
        raise BadInput(f"{where}: the answers are not a list of strings ({error})") from error
    return [str(answer) for answer in found]


def reader_row(
    question: str, answers: list[str], found: Iterable[tuple[Passage, float, bool]]
) -> dict[str, Any]:
    """A question with its ranked passages, as DPR's `dense_retriever.py` writes it for the reader.

    `found` has the passage, its score and whether it contains an answer. RAG and FiD read the same
    form. Scores are strings.
    """
    return {
        "question": question,
        "answers": answers,
        "ctxs": [
            {
                "id": passage.doc_id,
                "title": passage.title,
                "text": passage.text,
                "score": str(score),
                "has_answer": has_answer,
            }
            for passage, score, has_answer in found
        ],
    }
