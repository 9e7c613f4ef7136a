"""The pool that negatives are drawn from: ranked lists by source, scores, and candidate filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ance_cli.formats.candidates import Candidates
from ance_cli.mining.false_negatives import DatasetScope, DuplicateIndex
from ance_cli.mining.rescoring import Rescore
from ance_cli.mining.sampling import Floats, Positions

HasAnswer = Callable[[str, int], bool]
"""(query_id, document position) -> whether the document's text holds an answer of the query."""

Teacher = Callable[[list[tuple[str, int]]], npt.NDArray[np.float32]]
"""(query_id, document position) pairs -> the cross-encoder's logit of each."""


@dataclass(frozen=True)
class RankedLists:
    """One source: a ranked list of documents for each query, or for each positive passage."""

    docs: npt.NDArray[np.int32]
    """(lists, depth) document positions, best first, -1 = none"""
    scores: npt.NDArray[np.float32] | None
    """(lists, depth) the model's scores; None if the source has only a ranking"""
    row_of: Mapping[str, int]
    """query_id -> row, or doc_id of the positive -> row; a name without a row has an empty list"""
    by_positive: bool = False
    """Whether the lists belong to positives instead of queries."""

    @classmethod
    def of(cls, candidates: Candidates, scored: bool = True) -> RankedLists:
        """The candidates of queries; `scored` is whether their scores are the model's."""
        rows = {query_id: row for row, query_id in enumerate(candidates.query_ids)}
        return cls(candidates.docs, candidates.scores if scored else None, rows)

    def listed(self, name: str) -> tuple[Positions, Floats | None]:
        """The document positions of one list, best first, and their scores."""
        row = self.row_of.get(name)
        if row is None:
            return np.zeros(0, np.int64), None
        docs = self.docs[row]
        length = int((docs >= 0).sum())
        scores = None if self.scores is None else self.scores[row, :length]
        return docs[:length].astype(np.int64), scores


@dataclass(frozen=True)
class Pool:
    """Queries, their positives, and everything that their negatives may come from."""

    query_ids: Sequence[str]
    positives: Mapping[str, Sequence[str]]
    duplicates: DuplicateIndex
    sources: Mapping[str, RankedLists]
    """Every source of the mix except `random`."""
    positive_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """query_id -> doc_id -> score; empty if the scores are not known"""
    rescore: Rescore | None = None
    """Scores the candidates of sources without scores; None: such candidates have no score."""
    has_answer: HasAnswer | None = None
    teacher: Teacher | None = None
    scope: DatasetScope | None = None
    """For a merged dataset; otherwise None."""

    def corpus_of(self, query_id: str) -> Positions:
        """Positions of all documents that may be negatives of a query."""
        if self.scope is not None:
            return self.scope.members(query_id)
        return self._everything

    @cached_property
    def _everything(self) -> Positions:
        return np.arange(len(self.duplicates.doc_ids))

    def scored(self, query_id: str, docs: Positions, scores: Floats | None = None) -> Floats:
        """(docs,) the given scores; without them the model's scores, or NaN if there are none."""
        if scores is not None:
            return scores
        if self.rescore is not None:
            return self.rescore(query_id, docs)
        return np.full(len(docs), np.nan)
