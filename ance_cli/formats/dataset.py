"""The dataset: a corpus, queries and relevance labels in the BEIR layout.

`corpus.jsonl` holds `{"_id", "title", "text"}`, `queries.jsonl` `{"_id", "text"}`, `qrels/*.tsv`
`query-id <tab> corpus-id <tab> score`, or TREC's four columns. Each file can be `.gz` or `.zst`.
Readers check every line: a duplicate id, a missing field or a label that names an unknown id is an
error with its file and line.

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
from ance_cli.formats.jsonl import name_of, parse_object, read_lines, read_records, refuse
from ance_cli.formats.labels import names_ids, read_labels

_DOC_ID_FIELDS = ("_id", "doc_id", "docid", "id", "passage_id", "pid", "corpus-id")
_QUERY_ID_FIELDS = ("_id", "query_id", "qid", "id", "query-id")
ANSWER_FIELDS = ("answers", "answer")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

NO_CORPUS = Path()
"""In place of the corpus of a `Dataset` that has none."""

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
        """64-bit hash of the body with white space folded; passages with the same hash are copies.

        The title is not part of the hash: collections list one text under several titles. The hash
        of a passage without a body is that of its title.
        """
        return text_hash(self.text or self.title)


def text_hash(text: str) -> int:
    """64-bit hash of a text with white space folded."""
    return int(xxhash.xxh3_64_intdigest(" ".join(text.split()).encode()))


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
        """Hash of the content of the given parts (`corpus`, `queries`, `qrels`)."""
        return hash_json({part: hash_file(self.need(part)) for part in parts})

    @property
    def files(self) -> list[Path]:
        """The files of the dataset, which no output may replace."""
        return [
            path
            for path in (self.corpus, self.queries, self.qrels)
            if path not in (None, NO_CORPUS)
        ]

    def need(self, part: str) -> Path:
        """The path of a part; `UsageProblem` names the flag if the dataset has no such part."""
        path = getattr(self, part)
        if path in (None, NO_CORPUS):
            flags = {"queries": "--queries", "qrels": "--split or --qrels", "corpus": "--corpus"}
            raise UsageProblem(
                f"this command needs {part}", hint=f"name them with --data and {flags[part]}"
            )
        assert isinstance(path, Path)
        return path


def existing_file(folder: Path, stem: str, suffix: str) -> Path | None:
    """The plain or compressed file of that name in a folder; a plain one is preferred."""
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
    *,
    needs_corpus: bool = True,
) -> Dataset:
    """Find the files of a dataset folder; files that the caller names replace those of the folder.

    Where there is no corpus and `needs_corpus` is not set, the dataset's is `NO_CORPUS`. Raises
    `BadInput` if the folder, its corpus or the split does not exist.
    """
    if data is not None:
        if not data.is_dir():
            raise BadInput(
                f"{data}: no such dataset folder",
                hint="name a folder with corpus.jsonl, queries.jsonl and qrels/ with --data",
            )
        corpus = corpus or existing_file(data, "corpus", ".jsonl")
        queries = queries or existing_file(data, "queries", ".jsonl")
        if qrels is None and split is not None:
            qrels = existing_file(data / "qrels", split, ".tsv")
            if qrels is None:
                raise BadInput(
                    f"{data}/qrels/{split}.tsv: no such split",
                    hint=f"the dataset has the splits: {', '.join(splits_of(data)) or 'none'}",
                )
    if corpus is None and not needs_corpus:
        corpus = NO_CORPUS
    if corpus is None:
        where = f"{data}/corpus.jsonl: no such file" if data else "no corpus is named"
        problem = BadInput if data else UsageProblem
        raise problem(where, hint="name a dataset folder with --data, or a file with --corpus")
    return Dataset(corpus=corpus, queries=queries, qrels=qrels, split=split)


def is_dataset(folder: Path) -> bool:
    """Whether a folder has a part of a dataset in the BEIR layout."""
    files = (existing_file(folder, stem, ".jsonl") for stem in ("corpus", "queries"))
    return (folder / "qrels").is_dir() or any(files)


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
            f"{where}: {value!r} cannot be an id: it is empty or contains white space",
            hint="rename the id: TREC files separate their columns by white space",
        )
    if _CONTROL.search(value):
        raise BadInput(
            f"{where}: {value!r} cannot be an id: it contains a control character",
            hint="rename the id",
        )
    return value


def parse_passage(record: dict[str, object], where: str) -> Passage:
    """Parse one record of a corpus; the message of `BadInput` begins with `where`."""
    doc_id = checked_id(_text_field(record, _DOC_ID_FIELDS, where, "document id"), where)
    text = _text_field(record, ("text", "contents", "body"), where, "text")
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise BadInput(f"{where}: 'title' should be a string, found {type(title).__name__}")
    return Passage(doc_id, title, text)


def parse_query(record: dict[str, object], where: str) -> Query:
    """Parse one record of the queries; the message of `BadInput` begins with `where`."""
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
    """Yield the passages in file order, including empty ones.

    `on_bytes` is called with the number of bytes of each read from the file. Raises `BadInput` if
    the corpus is empty.
    """
    seen: dict[str, int] = {}
    for number, record in read_records(path, skipped, on_bytes):
        where = f"{path}:{number}"
        try:
            passage = parse_passage(record, where)
            if passage.doc_id in seen:
                raise BadInput(
                    f"{where}: document id {passage.doc_id!r} is also on line "
                    f"{seen[passage.doc_id]}",
                    hint="give each document its own id, or keep the first one with --skip-bad",
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


_TSV = re.compile(r"\.tsv(\.gz|\.zst)?$")
_JSON = re.compile(r"\.jsonl?(\.gz|\.zst)?$")


def _is_tab_separated(path: Path) -> bool:
    return _TSV.search(path.name) is not None


def _query_records(
    path: Path, skipped: SkippedLines | None
) -> Iterator[tuple[int, dict[str, object]]]:
    """The fields of each query. A file named as JSON holds JSON lines, a .tsv file `id <tab> text`;
    in stdin and in any other file, each line may be either, or a query alone, whose id is the
    number of its line."""
    if _JSON.search(path.name):
        yield from read_records(path, skipped)
        return
    is_first = True
    for number, line in read_lines(path):
        try:
            record = _query_of_line(line, number, path, is_first)
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        is_first = False
        if record:
            yield number, record


def _query_of_line(
    line: bytes, number: int, path: Path, is_first: bool
) -> dict[str, object] | None:
    """The fields of a line's query; None for a header."""
    where = f"{name_of(path)}:{number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{where}: not valid UTF-8") from None
    if not _is_tab_separated(path) and text.lstrip().startswith("{"):
        record = parse_object(line, where)
        if not any(name in record for name in _QUERY_ID_FIELDS):
            record["_id"] = str(number)
        return record
    columns = text.split("\t")
    if len(columns) > 1:
        is_header = is_first and names_ids(columns[0], columns[1])
        return None if is_header else {"_id": columns[0], "text": columns[1]}
    if _is_tab_separated(path):
        raise BadInput(f"{where}: expected `id <tab> text`, found one column")
    return {"_id": str(number), "text": text.strip()}


def read_query_records(path: Path, skipped: SkippedLines | None = None) -> Iterator[Query]:
    """Yield the queries in file order, from JSON lines, `id <tab> text` or plain lines."""
    lines: dict[str, int] = {}
    for number, record in _query_records(path, skipped):
        where = f"{name_of(path)}:{number}"
        try:
            query = parse_query(record, where)
            if query.query_id in lines:
                raise _repeated_query(query.query_id, where, lines[query.query_id])
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        lines[query.query_id] = number
        yield query
    if not lines:
        raise BadInput(
            f"{name_of(path)}: there is no query",
            hint='expected lines like {"_id": "q1", "text": "..."}',
        )


def _repeated_query(query_id: str, where: str, first_line: int) -> BadInput:
    return BadInput(
        f"{where}: query id {query_id!r} is also on line {first_line}",
        hint="give each query its own id, or keep the first one with --skip-bad",
    )


def read_queries(path: Path, skipped: SkippedLines | None = None) -> dict[str, str]:
    """query_id -> text, in file order."""
    return {query.query_id: query.text for query in read_query_records(path, skipped)}


def _answers_of(record: dict[str, object], where: str) -> list[str]:
    metadata = record.get("metadata")
    places = {"": record, "metadata.": metadata if isinstance(metadata, dict) else {}}
    for prefix, fields in places.items():
        for name in ANSWER_FIELDS:
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
                        f"{where}: '{prefix}{name}' should contain strings, "
                        f"found {type(answer).__name__}"
                    )
            return [answer for answer in answers if answer.strip()]
    return []


def read_answers(
    path: Path, skipped: SkippedLines | None = None, needed: bool = True
) -> dict[str, list[str]]:
    """query_id -> answers, for the queries that have any, in file order.

    A record of `queries.jsonl` has its answers in the field `answers` or `answer`, or in the same
    fields of its `metadata`: one string or a list of strings. Blank answers are dropped. Raises
    `BadInput` if no query has an answer and `needed` is set.
    """
    lines: dict[str, int] = {}
    found: dict[str, list[str]] = {}
    for number, record in () if _is_tab_separated(path) else read_records(path, skipped):
        where = f"{path}:{number}"
        try:
            query_id = checked_id(_text_field(record, _QUERY_ID_FIELDS, where, "query id"), where)
            answers = _answers_of(record, where)
            if query_id in lines:
                raise _repeated_query(query_id, where, lines[query_id])
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
    """Read relevance labels.

    Raises `BadInput` for an id that is not in `known_queries` or `known_docs` (None: not checked),
    for two different labels of one pair, and for a file without labels.
    """
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
                    f"{where}: document {doc_id!r} has the label {relevance} for query "
                    f"{query_id!r}, and {qrels[query_id][doc_id]} on an earlier line"
                )
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        qrels.setdefault(query_id, {})[doc_id] = relevance
    if not qrels:
        raise BadInput(
            f"{path}: the file has no label",
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
        hint="use labels and queries from the same release of the collection",
    )


def unknown_document(doc_id: str, where: str) -> BadInput:
    """The error of a line that names a document which is not in the corpus."""
    return BadInput(
        f"{where}: document {doc_id!r} is not in the corpus",
        hint="use labels and corpus from the same release of the collection",
    )


def positives_of(qrels: Qrels, min_relevance: int) -> dict[str, list[str]]:
    """query_id -> its positives (relevance >= `min_relevance`), for queries that have any.

    Raises `BadInput` if no query has a positive.
    """
    found = {
        query_id: positives
        for query_id, judged in qrels.items()
        if (positives := [doc for doc, grade in judged.items() if grade >= min_relevance])
    }
    if not found:
        highest = max(grade for judged in qrels.values() for grade in judged.values())
        raise BadInput(
            f"there is no positive: no label is at least {min_relevance}",
            hint=f"lower --min-rel; the highest label is {highest}",
        )
    return found
