"""DPR's files: reads training rows (one JSON list of a gigabyte or more, row by row), the passages
of Wikipedia (`psgs_w100.tsv`) and questions with answers (`nq-test.qa.csv`); writes the input of
DPR's reader."""

from __future__ import annotations

import ast
import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Query, checked_id
from ance_cli.formats.jsonl import DAMAGE, damaged, open_input, read_lines, refuse
from ance_cli.formats.labels import Label
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
from ance_cli.interop.tables import text_of

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


def rows(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, Record]]:
    """`[{question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs}, ...]`.

    The id of a question is the hash of its text. The id of a context is its `passage_id` (NQ) or
    `psg_id` (TriviaQA), otherwise the hash of title and text. Rows are numbered from 1.
    """
    for number, row in _json_list(path):
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


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """The members of a file that is one JSON list, one at a time, numbered from 1."""
    import ijson

    number = 0
    with open_input(path) as handle:
        try:
            for number, row in enumerate(ijson.items(handle, "item", use_float=True), start=1):
                yield number, row
        except DAMAGE as error:
            raise damaged(f"{path}: row {number + 1}", error) from error
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"{path}: row {number + 1}: not valid JSON ({reason})",
                hint="download or unpack the file again; the rows before this one are valid",
            ) from error


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
    for number, columns in _csv_rows(path, _PASSAGE_COLUMNS, skipped):
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
    for number, (text, answers) in _csv_rows(path, ["question", "answers"], skipped):
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


_MAX_LINES = 64
"""Lines that one row with line breaks inside quotes may have."""


def _csv_rows(
    path: Path, names: list[str], skipped: SkippedLines | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a tab-separated file, with the number of their first line.

    A cell may be in CSV quotes, and then have line breaks, but no tab. Some files are written
    without quotes: there a line with the right number of tabs is a row, and its quotation marks are
    text. So an open quote never swallows the rows after it.
    """
    waiting: deque[tuple[int, str]] = deque()
    source = _text_lines(path, skipped)
    while row := waiting.popleft() if waiting else next(source, None):
        number, line = row
        columns = _one_row(line, len(names))
        if columns is None and '"' in line:
            columns = _row_of_lines(line, len(names), waiting, source)
        if columns is None and line.count("\t") == len(names) - 1:
            columns = line.split("\t")
        if columns is not None:
            yield number, columns
            continue
        problem = BadInput(
            f"{path}:{number}: expected {len(names)} columns separated by tabs "
            f"({', '.join(names)}), found {line.count(chr(9)) + 1}"
            + (" or a quote that is not closed" if '"' in line else ""),
            hint=f"look at it with: sed -n {number}p {path}; skip bad lines with --skip-bad",
        )
        refuse(problem, skipped)


def _text_lines(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(path):
        try:
            text = text_of(line, f"{path}:{number}")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        yield number, text


def _one_row(text: str, count: int) -> list[str] | None:
    """The cells of a row with balanced quotes; None if it is not one row of `count` cells without
    tabs."""
    try:
        found = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return None
    if len(found) != 1 or len(found[0]) != count or any("\t" in cell for cell in found[0]):
        return None
    return found[0]


def _row_of_lines(
    line: str, count: int, waiting: deque[tuple[int, str]], source: Iterator[tuple[int, str]]
) -> list[str] | None:
    """The row that begins with `line` and continues on the next lines; None if there is none. Lines
    that do not belong to it remain in `waiting`."""
    text = line
    for place in range(_MAX_LINES):
        if place == len(waiting):
            if (more := next(source, None)) is None:
                return None
            waiting.append(more)
        following = waiting[place][1]
        if following.count("\t") >= count - 1:  # a row by itself
            return None
        text += "\n" + following
        if columns := _one_row(text, count):
            for _ in range(place + 1):
                waiting.popleft()
            return columns
    return None


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
