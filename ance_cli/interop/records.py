"""The parts and records of an import, and the example that an export writes.

The module of a format recognises its files and reads each as one stream of records. Documents and
queries precede the labels that name them, both within a part and because parts are read in the
order of their roles, so that every record can be checked when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import xxhash

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Query
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import DAMAGE, damaged, open_input
from ance_cli.formats.labels import Label
from ance_cli.formats.trec import Hit


class Role(IntEnum):
    """What a part contains, in the order in which parts are read."""

    DOCUMENTS = 1
    QUERIES = 2
    ROWS = 3
    """Training rows with their own texts; every positive becomes a label."""
    LABELS = 4
    TRIPLES = 5
    """Negatives by ids; their positives become labels if the split has no other labels."""
    RUN = 6


class Negative(NamedTuple):
    """One document that is a negative of a pair of query and positive in a source."""

    query_id: str
    positive_id: str
    doc_id: str
    source: str
    """The field or file that it comes from: `hard_negative_ctxs`, `triples`."""
    teacher_score: float | None = None
    teacher_positive_score: float | None = None


class Chunk(NamedTuple):
    """A passage that was cut out of a document."""

    passage: Passage
    parent_id: str
    """The document's id; the passages of a document are `PARENT#1`, `PARENT#2`, ... in order."""


Record = Passage | Chunk | Query | Label | Negative | Hit


class Example(NamedTuple):
    """One pair of query and positive with its negatives and all texts, as written to a row."""

    query: Query
    positive: Passage
    negatives: list[Passage]
    teacher_scores: list[float | None]
    """As long as `negatives`, or empty."""
    teacher_positive_score: float | None = None


def text_or_number(value: object, where: str) -> str:
    """A text, or the digits of a number (as tables turned into JSON have them); "" for null.

    The message of `BadInput` for another type begins with `where`.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{where} should be a string, found {type(value).__name__}")
    return str(value)


def answers_metadata(value: object, where: str) -> dict[str, list[str]] | None:
    """The metadata of a query with answers: a text, a list of texts, or SQuAD's object with the
    field `text`; None without answers."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if value is not None and not isinstance(value, str | list | tuple | int | float):
        raise BadInput(
            f"{where}: 'answers' should be a list of strings, found {type(value).__name__}"
        )
    values = value if isinstance(value, list | tuple) else [value]
    answers = [text_or_number(each, f"{where}: each of 'answers'") for each in values]
    found = [answer for answer in answers if answer.strip()]
    return {"answers": found} if found else None


@dataclass(frozen=True)
class Part:
    """One file (or one view of an ir_datasets id) of an import.

    `read` yields (number, record); `number` is the line, or the row if the file has no lines.
    """

    name: str
    """Its name in messages."""
    role: Role
    what: str
    """For people: the format that was recognised, and why."""
    read: Callable[[SkippedLines | None], Iterator[tuple[int, Record]]]
    fingerprint: Callable[[], str]
    split: str | None = None
    """The split in its name, if there is one."""
    text_only: bool = field(default=False, kw_only=True)
    """Its documents have no ids of their own, so that a separate corpus would be a second copy."""
    by_row: bool = field(default=False, kw_only=True)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)
    """For a table: role -> the columns that are read as it."""
    unused: Sequence[str] = field(default=(), kw_only=True)
    """For a table: the columns that are not read."""
    count: int | None = field(default=None, kw_only=True)
    """Rows, where the source says so."""
    is_cut: bool = field(default=False, kw_only=True)
    """Whether its documents are cut into passages."""

    def where(self, number: int) -> str:
        """The place of a record in messages."""
        return f"{self.name}: row {number}" if self.by_row else f"{self.name}:{number}"


def file_part(
    path: Path,
    role: Role,
    what: str,
    read: Callable[[Path, SkippedLines | None], Iterator[tuple[int, Record]]],
    split: str | None = None,
    *,
    text_only: bool = False,
    by_row: bool = False,
) -> Part:
    """The part for a file; its split defaults to the one in the file's name."""
    return Part(
        str(path), role, what, lambda skipped: read(path, skipped), lambda: hash_file(path),
        split or split_in(path.name), text_only=text_only, by_row=by_row,
    )  # fmt: skip


def content_id(*texts: str) -> str:
    """The id of a text that has none: 16 hexadecimal digits of its hash."""
    return xxhash.xxh3_64_hexdigest("\n".join(texts).encode())


_SPLIT = re.compile(
    r"(?:^|[^a-z])(?:doc)?(train|dev|test|eval|validation|valid|val|dl)"
    r"(?:-?(?:20)?(\d\d))?((?<=dev)\.small)?(?![a-z0-9])"
)
_NIST = re.compile(r"^20(\d\d)qrels")


def split_in(name: str) -> str | None:
    """The split in a name: the last of `train`, `dev`, `test`, ..., or None.

    `dev.small` is a split of its own; what belongs to a year of TREC's Deep Learning track
    (`2019qrels-pass.txt`, `msmarco-test2019-queries.tsv`) is `dl19`.
    """
    if nist := _NIST.search(name):
        return f"dl{nist[1]}"
    found = list(_SPLIT.finditer(name.lower()))
    if not found:
        return None
    word, year, small = found[-1].groups()
    if year:
        return f"dl{year}"
    return f"{word}{small or ''}" if word != "dl" else None


_HEAD_BYTES = 1 << 16


class Head:
    """The beginning of a file, from which its format is recognised; read on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] | None = None

    @property
    def lines(self) -> list[str]:
        """The first three lines that are not blank, from the first 64 KiB of the file."""
        if self._lines is None:
            with open_input(self.path) as handle:
                start = b""
                try:
                    while len(start) < _HEAD_BYTES and (part := handle.read1(_HEAD_BYTES)):  # type: ignore[attr-defined]
                        start += part
                except (*DAMAGE, OSError) as error:
                    if not start and isinstance(error, DAMAGE):
                        raise damaged(f"{self.path}:1", error) from error
                    # otherwise, reading the whole file reports the place
            text = start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
            lines = (line.rstrip("\r") for line in text.split("\n"))
            self._lines = [line for line in lines if line.strip()][:3]
        return self._lines

    @property
    def first(self) -> str:
        return self.lines[0] if self.lines else ""

    def only(self, place: int) -> Head:
        """The head as if the file held nothing but one of its first lines."""
        one = Head(self.path)
        one._lines = [self.lines[place]]
        return one

    @property
    def columns(self) -> list[str]:
        """The first line, split at its tabs."""
        return self.first.split("\t")

    def fields(self) -> set[str]:
        """The names in quotes before a colon in the first line: the fields of a JSON row."""
        return set(re.findall(r'"([\w-]+)"\s*:', self.first)) if self.first[:1] == "{" else set()
