"""What negatives are drawn from: the ranked lists of each source, and who may judge a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ance_cli.formats.candidates import Candidates
from ance_cli.mining.filtering import DatasetScope, DuplicateIndex
from ance_cli.mining.rescoring import Rescore
from ance_cli.mining.sampling import Floats, Positions

HasAnswer = Callable[[str, int], bool]
"""(query_id, document position) -> whether the document's text holds an answer of the query."""

Teacher = Callable[[list[tuple[str, int]]], npt.NDArray[np.float32]]
"""(query_id, document position) pairs -> the cross-encoder's logit of each."""


@dataclass(frozen=True)
class RankedLists:
    """One source: a ranked list of documents for each query, or for each positive passage.

    `docs` (lists, depth) int32 document positions, best first, -1 = none; `scores` of the same
    shape, or None where the source has none of the model's; `row_of` query_id (or the positive's
    doc_id, with `by_positive`) -> row. A name without a row has an empty list.
    """

    docs: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32] | None
    row_of: Mapping[str, int]
    by_positive: bool = False

    @classmethod
    def of(cls, candidates: Candidates, scored: bool = True) -> RankedLists:
        """The candidates of queries; with `scored` off their scores are not the model's."""
        rows = {query_id: row for row, query_id in enumerate(candidates.query_ids)}
        return cls(candidates.docs, candidates.scores if scored else None, rows)

    def listed(self, name: str) -> tuple[Positions, Floats | None]:
        """Document positions, best first, and their scores."""
        row = self.row_of.get(name)
        if row is None:
            return np.zeros(0, np.int64), None
        docs = self.docs[row]
        length = int((docs >= 0).sum())
        scores = None if self.scores is None else self.scores[row, :length]
        return docs[:length].astype(np.int64), scores


@dataclass(frozen=True)
class Pool:
    """Queries, their positives, and all that a pair's negatives may come from.

    `sources` holds every source of the mix but `random`. `rescore` gives the model's scores where a
    source brings none; without it such candidates have no score. `positive_scores`
    query_id -> doc_id -> score, empty where there are none.
    """

    query_ids: Sequence[str]
    positives: Mapping[str, Sequence[str]]
    duplicates: DuplicateIndex
    sources: Mapping[str, RankedLists]
    positive_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rescore: Rescore | None = None
    has_answer: HasAnswer | None = None
    teacher: Teacher | None = None
    scope: DatasetScope | None = None
    """Of a merged dataset."""

    def corpus_of(self, query_id: str) -> Positions:
        """Positions of all documents from which a query's negatives may come."""
        if self.scope is not None:
            return self.scope.members(query_id)
        return self._everything

    @cached_property
    def _everything(self) -> Positions:
        return np.arange(len(self.duplicates.doc_ids))

    def scored(self, query_id: str, docs: Positions, scores: Floats | None = None) -> Floats:
        """(docs,) the given scores, else the model's, else NaN."""
        if scores is not None:
            return scores
        if self.rescore is not None:
            return self.rescore(query_id, docs)
        return np.full(len(docs), np.nan)
