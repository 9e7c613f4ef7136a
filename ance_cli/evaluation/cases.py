"""The queries on which two runs differ most, and the documents that explain the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ance_cli.formats.trec import in_trec_order

TOP = 3
"""Documents to show from each run, and from the relevant documents."""


def wins_and_losses(
    first: Mapping[str, float], second: Mapping[str, float], count: int
) -> tuple[list[str], list[str]]:
    """Query ids on which the second run is better, and worse: the `count` largest differences.

    Equal differences keep the order of `first`. A query without a difference is in neither list.
    """
    difference = {query_id: second[query_id] - first[query_id] for query_id in first}
    ordered = sorted(difference, key=lambda query_id: -difference[query_id])
    wins = [query_id for query_id in ordered if difference[query_id] > 0]
    ordered.sort(key=lambda query_id: difference[query_id])
    losses = [query_id for query_id in ordered if difference[query_id] < 0]
    return wins[:count], losses[:count]


@dataclass(frozen=True)
class Shown:
    """A document of a case, with its label and its ranks from 1; None if it has none."""

    doc_id: str
    relevance: int | None
    first_rank: int | None
    second_rank: int | None


def documents_of(
    first: Mapping[str, float], second: Mapping[str, float], labels: Mapping[str, int]
) -> list[Shown]:
    """The documents to show for one query: each run's `TOP` and the relevant documents with the
    highest labels, sorted by the second run and then by the first run."""
    ranks = [
        {doc_id: rank for rank, (doc_id, _) in enumerate(in_trec_order(hits), start=1)}
        for hits in (second, first)
    ]
    relevant = sorted((doc for doc, grade in labels.items() if grade > 0), key=lambda d: -labels[d])
    chosen = {doc: None for ranking in ranks for doc, rank in ranking.items() if rank <= TOP}
    chosen |= dict.fromkeys(relevant[:TOP])
    last = len(first) + len(second) + 1
    ordered = sorted(chosen, key=lambda doc: [ranking.get(doc, last) for ranking in ranks])
    return [Shown(doc, labels.get(doc), ranks[1].get(doc), ranks[0].get(doc)) for doc in ordered]
