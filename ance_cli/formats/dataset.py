"""The dataset: a corpus, queries and relevance labels in the BEIR layout.

`corpus.jsonl` holds `{"_id", "title", "text"}`, `queries.jsonl` `{"_id", "text"}`, `qrels/*.tsv`
`query-id <tab> corpus-id <tab> score`; TREC's four columns are read as well. Each may be `.gz` or
`.zst`. Everything is checked at the door: a duplicate id, a missing field or a label that names an
unknown id is an error with its file and line.

A merged dataset (`ance merge`) is such a folder whose ids are `NAME/ID`, NAME being the dataset
that the document or query came from. Next to its corpus, `datasets.json` lists the names, each with
its share of the pairs that training visits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.jsonl import read_lines, read_records, refuse
from ance_cli.formats.labels import read_labels

_DOC_ID_FIELDS = ("_id", "doc_id", "docid", "id", "passage_id", "pid", "corpus-id")
_QUERY_ID_FIELDS = ("_id", "query_id", "qid", "id", "query-id")
_ANSWER_FIELDS = ("answers", "answer")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Qrels = dict[str, dict[str, int]]
"""query_id -> doc_id -> relevance, in the order of the file."""


class Passage(NamedTuple):
    """One record of the corpus."""

    doc_id: str
    title: str
    text: str

    def joined(self, separator: str) -> str:
        """The text that an encoder or BM25 sees: title, separator, body."""
        return f"{self.title}{separator}{self.text}" if self.title else self.text

    def body_hash(self) -> int:
        """64-bit hash of the body with white space folded; two passages with it are copies.

        The title is not compared: collections file one text under several titles. A passage
        without a body is compared by its title.
        """
        body = " ".join((self.text or self.title).split())
        return int(xxhash.xxh3_64_intdigest(body.encode()))


class Query(NamedTuple):
    """One record of the queries."""

    query_id: str
    text: str
    metadata: Any = None
    """The record's field `metadata`, unchanged; None if it has none."""


@dataclass(frozen=True)
class Dataset:
    """The paths of a dataset, and the split of its labels."""

    corpus: Path
    queries: Path | None
    qrels: Path | None
    split: str | None = None

    def fingerprint(self, *parts: str) -> str:
        """Hash over the content of the named parts (`corpus`, `queries`, `qrels`)."""
        return hash_json({part: hash_file(self.need(part)) for part in parts})

    @property
    def files(self) -> list[Path]:
        """The files that are there, to keep an output from replacing one."""
        return [path for path in (self.corpus, self.queries, self.qrels) if path is not None]

    def need(self, part: str) -> Path:
        """The path of a part, or a usage error that says which flag names it."""
        path = getattr(self, part)
        if path is None:
            flags = {"queries": "--queries", "qrels": "--split or --qrels", "corpus": "--corpus"}
            raise UsageProblem(
                f"this needs {part}", hint=f"name them with --data and {flags[part]}"
            )
        assert isinstance(path, Path)
        return path


def _existing(folder: Path, stem: str, suffix: str) -> Path | None:
    for ending in ("", ".gz", ".zst"):
        path = folder / f"{stem}{suffix}{ending}"
        if path.exists():
            return path
    return None


def locate(
    data: Path | None,
    split: str | None = None,
    corpus: Path | None = None,
    queries: Path | None = None,
    qrels: Path | None = None,
) -> Dataset:
    """Find the files of a dataset folder; single files named by the caller take precedence."""
    if data is not None:
        if not data.is_dir():
            raise BadInput(
                f"{data}: no such dataset folder",
                hint="--data names a folder with corpus.jsonl, queries.jsonl and qrels/",
            )
        corpus = corpus or _existing(data, "corpus", ".jsonl")
        queries = queries or _existing(data, "queries", ".jsonl")
        if qrels is None and split is not None:
            qrels = _existing(data / "qrels", split, ".tsv")
            if qrels is None:
                raise BadInput(
                    f"{data}/qrels/{split}.tsv: no such split",
                    hint=f"the splits there are: {', '.join(splits_of(data)) or 'none'}",
                )
    if corpus is None:
        where = f"{data}/corpus.jsonl: no such file" if data else "no corpus was named"
        problem = BadInput if data else UsageProblem
        raise problem(where, hint="name a dataset folder with --data, or a file with --corpus")
    return Dataset(corpus=corpus, queries=queries, qrels=qrels, split=split)


def splits_of(data: Path) -> list[str]:
    """The splits that a dataset folder has labels for, by name."""
    names = {
        path.name.removesuffix(ending)
        for ending in (".tsv", ".tsv.gz", ".tsv.zst")
        for path in (data / "qrels").glob(f"*{ending}")
    }
    return sorted(names)


def _text_field(record: dict[str, object], names: tuple[str, ...], where: str, what: str) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and "id" in name:
            return str(value)
        if value is not None:
            raise BadInput(f"{where}: {name!r} should be a string, found {type(value).__name__}")
    raise BadInput(
        f"{where}: no {what} (looked for {', '.join(names)}); "
        f"the record has {', '.join(record) or 'no fields'}",
        hint='a record looks like {"_id": "d1", "title": "...", "text": "..."}',
    )


def checked_id(value: str, where: str) -> str:
    """The id, if it fits in a column of a text file; otherwise `BadInput`."""
    if value.split() != [value]:
        raise BadInput(
            f"{where}: {value!r} cannot be an id: it is empty or holds white space",
            hint="TREC files separate their columns by white space; rename the id",
        )
    if _CONTROL.search(value):
        raise BadInput(
            f"{where}: {value!r} cannot be an id: it holds a control character",
            hint="rename the id",
        )
    return value


def parse_passage(record: dict[str, object], where: str) -> Passage:
    """One record of a corpus; `BadInput` that begins with `where` if it is none."""
    doc_id = checked_id(_text_field(record, _DOC_ID_FIELDS, where, "document id"), where)
    text = _text_field(record, ("text", "contents", "body"), where, "text")
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise BadInput(f"{where}: 'title' should be a string")
    return Passage(doc_id, title, text)


def parse_query(record: dict[str, object], where: str) -> Query:
    """One record of the queries; `BadInput` that begins with `where` if it is none."""
    query_id = checked_id(_text_field(record, _QUERY_ID_FIELDS, where, "query id"), where)
    text = _text_field(record, ("text", "query", "contents"), where, "text")
    if not text.strip():
        raise BadInput(f"{where}: query {query_id!r} is empty")
    return Query(query_id, text, record.get("metadata"))


def read_corpus(
    path: Path,
    skipped: SkippedLines | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Passage]:
    """The passages in file order. Empty ones are passed on; an empty corpus is an error.

    `on_bytes` is called with the number of bytes of each read from the file.
    """
    seen: dict[str, int] = {}
    for number, record in read_records(path, skipped, on_bytes):
        where = f"{path}:{number}"
        try:
            passage = parse_passage(record, where)
            if passage.doc_id in seen:
                raise BadInput(
                    f"{where}: document id {passage.doc_id!r} was used before, "
                    f"on line {seen[passage.doc_id]}",
                    hint="ids name one document each; --skip-bad keeps the first",
                )
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        seen[passage.doc_id] = number
        yield passage
    if not seen:
        raise BadInput(
            f"{path}: the corpus is empty", hint='expected lines like {"_id": "d1", "text": "..."}'
        )


def _is_tab_separated(path: Path) -> bool:
    return path.name.split(".")[-1] == "tsv" or ".tsv." in path.name


def _query_records(
    path: Path, skipped: SkippedLines | None
) -> Iterator[tuple[int, dict[str, object]]]:
    if not _is_tab_separated(path):
        yield from read_records(path, skipped)
        return
    for number, line in read_lines(path):
        try:
            columns = line.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            refuse(BadInput(f"{path}:{number}: not valid UTF-8"), skipped)
            continue
        if len(columns) < 2:
            problem = BadInput(f"{path}:{number}: expected `id <tab> text`, found one column")
            refuse(problem, skipped)
            continue
        yield number, {"_id": columns[0], "text": columns[1]}


def read_query_records(path: Path, skipped: SkippedLines | None = None) -> Iterator[Query]:
    """The queries in file order: JSON lines, or `id <tab> text` in a .tsv file."""
    lines: dict[str, int] = {}
    for number, record in _query_records(path, skipped):
        where = f"{path}:{number}"
        try:
            query = parse_query(record, where)
            if query.query_id in lines:
                raise BadInput(
                    f"{where}: query id {query.query_id!r} was used before, "
                    f"on line {lines[query.query_id]}"
                )
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        lines[query.query_id] = number
        yield query
    if not lines:
        raise BadInput(
            f"{path}: there is no query in it",
            hint='expected lines like {"_id": "q1", "text": "..."}',
        )


def read_queries(path: Path, skipped: SkippedLines | None = None) -> dict[str, str]:
    """query_id -> text, in file order."""
    return {query.query_id: query.text for query in read_query_records(path, skipped)}


def _answers_of(record: dict[str, object], where: str) -> list[str]:
    metadata = record.get("metadata")
    places = {"": record, "metadata.": metadata if isinstance(metadata, dict) else {}}
    for prefix, fields in places.items():
        for name in _ANSWER_FIELDS:
            value = fields.get(name)
            if value is None:
                continue
            answers = [value] if isinstance(value, str) else value
            if not isinstance(answers, list):
                raise BadInput(
                    f"{where}: '{prefix}{name}' should be a string or a list of strings, "
                    f"found {type(value).__name__}"
                )
            for answer in answers:
                if not isinstance(answer, str):
                    raise BadInput(
                        f"{where}: '{prefix}{name}' should hold strings, "
                        f"found {type(answer).__name__}"
                    )
            return [answer for answer in answers if answer.strip()]
    return []


def read_answers(
    path: Path, skipped: SkippedLines | None = None, needed: bool = True
) -> dict[str, list[str]]:
    """query_id -> the answers of the queries that have any, in file order.

    They are in `queries.jsonl`, under `answers` or `answer`, in the record or in its `metadata`:
    a list of strings or one string. Blank ones are left out. Raises `BadInput` where no query has
    an answer and one is `needed`.
    """
    lines: dict[str, int] = {}
    found: dict[str, list[str]] = {}
    for number, record in () if _is_tab_separated(path) else read_records(path, skipped):
        where = f"{path}:{number}"
        try:
            query_id = checked_id(_text_field(record, _QUERY_ID_FIELDS, where, "query id"), where)
            answers = _answers_of(record, where)
            if query_id in lines:
                raise BadInput(
                    f"{where}: query id {query_id!r} was used before, on line {lines[query_id]}"
                )
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        lines[query_id] = number
        if answers:
            found[query_id] = answers
    if needed and not found:
        raise BadInput(
            f"{path}: no query has an answer",
            hint='a record with answers looks like {"_id": "q1", "text": "...", '
            '"metadata": {"answers": ["...", "..."]}}',
        )
    return found


def read_qrels(
    path: Path,
    known_queries: Container[str] | None = None,
    known_docs: Container[str] | None = None,
    skipped: SkippedLines | None = None,
) -> Qrels:
    """Relevance labels; ids that the queries or the corpus do not know are errors."""
    qrels: Qrels = {}
    for number, (query_id, doc_id, relevance) in read_labels(path, skipped):
        where = f"{path}:{number}"
        try:
            if known_queries is not None and query_id not in known_queries:
                raise unknown_query(query_id, where)
            if known_docs is not None and doc_id not in known_docs:
                raise unknown_document(doc_id, where)
            if qrels.get(query_id, {}).get(doc_id, relevance) != relevance:
                raise BadInput(
                    f"{where}: {doc_id!r} has two labels for query {query_id!r}: "
                    f"{qrels[query_id][doc_id]} before, {relevance} here"
                )
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        qrels.setdefault(query_id, {})[doc_id] = relevance
    if not qrels:
        raise BadInput(
            f"{path}: there is no label in it",
            hint="expected lines like `q1 <tab> d1 <tab> 1`, or TREC's four columns",
        )
    return qrels


def queries_of_split(dataset: Dataset, skipped: SkippedLines | None = None) -> dict[str, str]:
    """The queries that the split's labels judge; all queries if no split is named."""
    queries = read_queries(dataset.need("queries"), skipped)
    if dataset.qrels is None:
        return queries
    qrels = read_qrels(dataset.qrels, known_queries=queries, skipped=skipped)
    return {query_id: queries[query_id] for query_id in qrels}


def unknown_query(query_id: str, where: str) -> BadInput:
    """The error of a line that names a query which is not among the queries."""
    return BadInput(
        f"{where}: query {query_id!r} is not among the queries",
        hint="labels and queries should come from the same release of the collection",
    )


def unknown_document(doc_id: str, where: str) -> BadInput:
    """The error of a line that names a document which is not in the corpus."""
    return BadInput(
        f"{where}: document {doc_id!r} is not in the corpus",
        hint="labels and corpus should come from the same release of the collection",
    )


def positives_of(qrels: Qrels, min_relevance: int) -> dict[str, list[str]]:
    """query_id -> its positives (relevance >= `min_relevance`), for queries that have any.

    Raises `BadInput` where no query has one.
    """
    found = {
        query_id: positives
        for query_id, judged in qrels.items()
        if (positives := [doc for doc, grade in judged.items() if grade >= min_relevance])
    }
    if not found:
        highest = max(grade for judged in qrels.values() for grade in judged.values())
        raise BadInput(
            f"no label is at least {min_relevance}: there is no positive",
            hint=f"the highest label is {highest}; lower --min-rel",
        )
    return found
