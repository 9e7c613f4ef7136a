"""The queries that were written, each text once with all of its passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from ance_cli.formats.labels import LABELS_HEADER
from ance_cli.progress import Reporter
from ance_cli.query_generation.writing import Written
from ance_cli.retrieval.search import Hits


@dataclass
class _Query:
    query_id: str
    positives: list[str]


class QueryPool:
    """Queries and their positives, in the order in which they are added.

    The id of a query is that of the first passage that it was written for, with `-q` and the number
    of the draw. So a query for a passage of a merged dataset belongs to the passage's dataset.
    """

    def __init__(self) -> None:
        self._by_text: dict[str, _Query] = {}
        self._counts: Counter[str] = Counter()
        self._refusal = ""

    @property
    def queries(self) -> dict[str, str]:
        """query_id -> text"""
        return {query.query_id: text for text, query in self._by_text.items()}

    @property
    def stats(self) -> dict[str, int]:
        """How many passages were asked for, what came of them, and what is left.

        `duplicates` are answers with the text of an earlier one, `filtered` are pairs of query and
        passage that the round trip removed.
        """
        names = ("passages", "refused", "generated", "empty", "duplicates", "filtered")
        return {
            **{name: self._counts[name] for name in names},
            "queries": len(self._by_text),
            "labels": sum(len(query.positives) for query in self._by_text.values()),
        }

    def add(self, doc_id: str, written: Written) -> None:
        """Add what was written for one passage."""
        self._counts["passages"] += 1
        if written.refused:
            self._counts["refused"] += 1
            self._refusal = self._refusal or f"{doc_id!r}: {written.refused}"
        for draw, text in enumerate(written.queries, start=1):
            self._counts["generated"] += 1
            if not text:
                self._counts["empty"] += 1
            elif text not in self._by_text:
                self._by_text[text] = _Query(f"{doc_id}-q{draw}", [doc_id])
            else:
                self._counts["duplicates"] += 1
                positives = self._by_text[text].positives
                if doc_id not in positives:
                    positives.append(doc_id)

    def warn_of_missing(self, reporter: Reporter) -> None:
        """Warn about passages that were refused, and about answers without a query."""
        found = self._counts
        if found["refused"]:
            reporter.warn(
                f"{found['refused']} of {found['passages']} documents are left out, the first: "
                f"{self._refusal}"
            )
        if found["empty"]:
            reporter.warn(f"{found['empty']} of {found['generated']} answers are empty")

    def keep_found(self, hits: Mapping[str, Hits]) -> None:
        """Keep the pairs of which the passage is among the query's hits: the round trip."""
        kept = {}
        for text, query in self._by_text.items():
            found = {doc_id for doc_id, _ in hits[query.query_id]}
            positives = [doc_id for doc_id in query.positives if doc_id in found]
            self._counts["filtered"] += len(query.positives) - len(positives)
            if positives:
                kept[text] = _Query(query.query_id, positives)
        self._by_text = kept

    def write(self, folder: Path, split: str) -> None:
        """Write `queries.jsonl` and `qrels/SPLIT.tsv`."""
        labels = folder / "qrels" / f"{split}.tsv"
        labels.parent.mkdir()
        with open(folder / "queries.jsonl", "wb") as queries, open(labels, "wb") as pairs:
            pairs.write(LABELS_HEADER)
            for text, query in self._by_text.items():
                record = {"_id": query.query_id, "text": text, "metadata": {"generated": True}}
                queries.write(orjson.dumps(record) + b"\n")
                for doc_id in query.positives:
                    pairs.write(f"{query.query_id}\t{doc_id}\t1\n".encode())
