"""Writes the records of an import into a dataset folder, and checks each against earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import orjson
import xxhash

from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage, Query, unknown_document, unknown_query
from ance_cli.formats.labels import LABELS_HEADER, Label
from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.formats.trec import Hit
from ance_cli.interop.external_groupby import ExternalGroupBy
from ance_cli.interop.hashed_id_map import HashedIdMap
from ance_cli.interop.records import Chunk, Negative, Part, Record, Role

_SPILLED = ".spilled"
_TAG = "imported"
_GRADE_OFFSET = 1 << 32
"""Added to labels, which can be negative (TREC's junk is -2); values of `HashedIdMap` cannot."""


class DatasetWriter:
    """The dataset folder that an import grows.

    A document or query that is repeated with the same text is written once; with another text it is
    an error. Two different labels of a pair are an error, and so is an unknown id, if the import
    has documents or queries. Only hashes of ids and texts are kept in memory.
    """

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self._folder = folder
        self._files = ExitStack()
        self._handles: dict[str, IO[bytes]] = {}
        self._has_corpus = any(part.role is Role.DOCUMENTS for part in parts)
        self._labelled = {part.split for part in parts if part.role is Role.LABELS}
        self._documents, self._queries = HashedIdMap(), HashedIdMap()
        self._parents = HashedIdMap()
        self._cut: tuple[str, int] | None = None
        self._labels, self._pairs, self._hits = HashedIdMap(), HashedIdMap(), HashedIdMap()
        self._spills: dict[str, ExternalGroupBy] = {}
        self.stats: dict[str, Any] = {
            "passages": 0, "queries": 0, "labels": {}, "negatives": {}, "runs": {}, "repeated": 0,
        }  # fmt: skip

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def take(self, record: Record, part: Part, number: int) -> None:
        """Write one record of a part; `BadInput` names its file and line."""
        if not isinstance(record, Chunk):
            self._end_document()
        match record:
            case Passage():
                self._passage(record, part, number)
            case Chunk():
                self._chunk(record, part, number)
            case Query():
                self._query(record, part, number)
            case Label():
                doc_ids = self._passages_of(record.doc_id)
                if doc_ids != [record.doc_id]:
                    self._add("labels_of_documents")
                for doc_id in doc_ids:
                    self._label(record._replace(doc_id=doc_id), part, number)
            case Negative():
                for positive_id in self._passages_of(record.positive_id):
                    for doc_id in self._passages_of(record.doc_id):
                        found = record._replace(positive_id=positive_id, doc_id=doc_id)
                        self._negative(found, part, number)
            case Hit():
                self._hit(record, part, number)

    def _to(self, name: str, line: bytes) -> None:
        handle = self._handles.get(name)
        if handle is None:
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = self._handles[name] = self._files.enter_context(open(path, "wb"))
            if name.startswith("qrels/"):
                handle.write(LABELS_HEADER)
        handle.write(line)

    def _add(self, name: str) -> None:
        self.stats[name] = self.stats.get(name, 0) + 1

    def _count(self, kind: str, split: str) -> None:
        self.stats[kind][split] = self.stats[kind].get(split, 0) + 1

    # ---------------------------------------------------------------- texts

    def _is_new(
        self, seen: HashedIdMap, key: str, text: str, what: str, part: Part, number: int
    ) -> bool:
        content = xxhash.xxh3_64_intdigest(text.encode())
        before = seen.get(key)
        if before is None:
            seen.add(key, content)
            return True
        if before != content:
            raise BadInput(
                f"{part.where(number)}: {what} id {key!r} was used before with another text",
                hint=f"give each {what} its own id, or keep the first one with --skip-bad",
            )
        self.stats["repeated"] += 1
        return False

    def _passage(
        self, passage: Passage, part: Part, number: int, parent_id: str | None = None
    ) -> None:
        doc_id, title, text = passage
        if part.role is Role.ROWS and self._has_corpus:
            return  # the corpus has it, or else the label or negative that names it is refused
        parent = {} if parent_id is None else {"parent_id": parent_id}
        line = _line({"_id": doc_id, "title": title, "text": text, **parent}, part, number)
        if self._is_new(self._documents, doc_id, f"{title}\n{text}", "document", part, number):
            self._to("corpus.jsonl", line)
            self.stats["passages"] += 1

    def _chunk(self, chunk: Chunk, part: Part, number: int) -> None:
        parent_id = chunk.parent_id
        if self._cut is None or self._cut[0] != parent_id:
            self._end_document()
            if parent_id in self._parents:
                raise BadInput(
                    f"{part.where(number)}: document id {parent_id!r} was used before",
                    hint="give each document its own id, or keep the first one with --skip-bad",
                )
            self._cut = (parent_id, 0)
        self._passage(chunk.passage, part, number, parent_id)
        self._cut = (parent_id, self._cut[1] + 1)

    def _end_document(self) -> None:
        """Remember how many passages the document has that was cut last."""
        if self._cut is not None:
            self._parents.add(*self._cut)
            self._add("documents_cut")
            self._cut = None

    def _passages_of(self, doc_id: str) -> list[str]:
        """The passages of a document that was cut; otherwise the id itself."""
        count = self._parents.get(doc_id) if len(self._parents) else None
        if count is None:
            return [doc_id]
        return [f"{doc_id}#{place}" for place in range(1, count + 1)]

    def _query(self, query: Query, part: Part, number: int) -> None:
        query_id, text, metadata = query
        extra = {} if metadata is None else {"metadata": metadata}
        line = _line({"_id": query_id, "text": text, **extra}, part, number)
        if self._is_new(self._queries, query_id, text, "query", part, number):
            self._to("queries.jsonl", line)
            self.stats["queries"] += 1

    # ---------------------------------------------------------------- labels, negatives, hits

    def _check(self, query_id: str, doc_ids: tuple[str, ...], part: Part, number: int) -> None:
        if len(self._queries) and query_id not in self._queries:
            raise unknown_query(query_id, part.where(number))
        for doc_id in doc_ids:
            if len(self._documents) and doc_id not in self._documents:
                raise unknown_document(doc_id, part.where(number))

    def _grade(self, split: str, query_id: str, doc_id: str) -> int | None:
        found = self._labels.get(f"{split}\t{query_id}\t{doc_id}")
        return None if found is None else found - _GRADE_OFFSET

    def _label(self, label: Label, part: Part, number: int) -> None:
        query_id, doc_id, grade = label
        split = _split_of(part)
        before = self._grade(split, query_id, doc_id)
        if part.role is Role.TRIPLES and split in self._labelled:
            if before is None or before < 1:
                raise BadInput(
                    f"{part.where(number)}: {doc_id!r} is not a positive of query {query_id!r} in "
                    f"the labels of {split!r}",
                    hint="use triples and labels from the same release of the collection",
                )
            return
        if before is not None:
            implied = part.role is not Role.LABELS and before >= 1
            if before != grade and not implied:
                raise BadInput(
                    f"{part.where(number)}: document {doc_id!r} has the label {grade} for query "
                    f"{query_id!r}, and {before} on an earlier line"
                )
            return
        self._check(query_id, (doc_id,), part, number)
        self._labels.add(f"{split}\t{query_id}\t{doc_id}", grade + _GRADE_OFFSET)
        self._to(f"qrels/{split}.tsv", f"{query_id}\t{doc_id}\t{grade}\n".encode())
        self._count("labels", split)

    def _negative(self, negative: Negative, part: Part, number: int) -> None:
        query_id, positive_id, doc_id, *rest = negative
        split = _split_of(part)
        if (self._grade(split, query_id, positive_id) or 0) < 1:
            return  # the label of this positive was refused and counted
        if len(self._documents) and doc_id not in self._documents:
            raise unknown_document(doc_id, part.where(number))
        pair = f"{split}\t{query_id}\t{positive_id}"
        group = self._pairs.get(pair)
        if group is None:
            group = len(self._pairs)
            self._pairs.add(pair, group)
        if split not in self._spills:
            self._spills[split] = ExternalGroupBy(self._folder / _SPILLED / split)
        self._spills[split].add(group, query_id, positive_id, doc_id, *rest)

    def _hit(self, hit: Hit, part: Part, number: int) -> None:
        query_id, doc_id, score, rank = hit
        split = _split_of(part)
        self._check(query_id, (doc_id,), part, number)
        if (key := f"{split}\t{query_id}\t{doc_id}") in self._hits:
            raise BadInput(
                f"{part.where(number)}: document {doc_id!r} occurs twice for query {query_id!r}"
            )
        self._hits.add(key)
        line = f"{query_id} Q0 {doc_id} {rank} {score:.6f} {_TAG}\n"
        self._to(f"runs/{split}.trec", line.encode())
        self._count("runs", split)

    # ---------------------------------------------------------------- the end

    def finish(self) -> None:
        """Write the negatives, one line per pair, and close the files.

        Positives of the query are removed from its negatives here, because only now is every label
        known.
        """
        self._end_document()
        dropped = 0
        for split, spill in self._spills.items():
            for group in spill.groups():
                query_id, positive_id = group[0][:2]
                found: dict[str, tuple[str, float | None, float | None]] = {}
                for _, _, doc_id, source, score, positive_score in group:
                    if (self._grade(split, query_id, doc_id) or 0) >= 1:
                        dropped += 1
                    else:
                        found.setdefault(doc_id, (source, score, positive_score))
                if found:
                    line = _pair(query_id, positive_id, found).to_line()
                    self._to(f"negatives/{split}.jsonl", line)
                    self._count("negatives", split)
        if self._spills:
            (self._folder / _SPILLED).rmdir()
            self.stats["positives_among_negatives"] = dropped
        self._files.close()


def _pair(
    query_id: str, positive_id: str, found: dict[str, tuple[str, float | None, float | None]]
) -> PairNegatives:
    """The line of a pair; `found`: doc_id -> (source, teacher's score, the positive's score)."""
    sources, scores, positive_scores = zip(*found.values(), strict=True)
    return PairNegatives(
        query_id, positive_id, list(found), [None] * len(found), [None] * len(found), None,
        list(sources), list(scores) if any(score is not None for score in scores) else [],
        next((score for score in positive_scores if score is not None), None),
    )  # fmt: skip


def _split_of(part: Part) -> str:
    assert part.split is not None, "recognition gives every such part a split"
    return part.split


def _line(record: dict[str, Any], part: Part, number: int) -> bytes:
    try:
        return orjson.dumps(record) + b"\n"
    except orjson.JSONEncodeError as error:  # a lone surrogate, which no UTF-8 file can hold
        raise BadInput(f"{part.where(number)}: the text is not valid Unicode ({error})") from error
