"""What may be a negative: never a known positive or a copy of one, and what the rules let pass."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.formats.dataset import Passage
from ance_cli.formats.merged import dataset_name_of, owners
from ance_cli.mining.sampling import Floats, Positions


class DuplicateIndex:
    """Which documents hold the same text: positions in corpus order, by a hash of the body."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.doc_ids: list[str] = []
        hashes: list[int] = []
        for passage in passages:
            self.doc_ids.append(passage.doc_id)
            hashes.append(passage.body_hash())
        repeated = {value for value, count in Counter(hashes).items() if count > 1}
        groups: dict[int, list[int]] = defaultdict(list)
        for place, value in enumerate(hashes):
            if value in repeated:
                groups[value].append(place)
        self._group_of = {place: group for group in groups.values() for place in group}
        self.position: Mapping[str, int] = {
            doc_id: place for place, doc_id in enumerate(self.doc_ids)
        }

    def banned(self, positives: Iterable[str]) -> tuple[set[int], set[int]]:
        """Positions of the positives, and of the other documents with the text of one of them."""
        own = {self.position[doc_id] for doc_id in positives}
        same = {place for mine in own for place in self._group_of.get(mine, ())}
        return own, same - own


@dataclass(frozen=True)
class Filters:
    """Rules on ranks and scores, named as in sentence-transformers' `mine_hard_negatives`.

    Ranks count from 1 in the raw list, before positives are removed. The margins compare with the
    lowest-scoring positive of the query.
    """

    range_min: int = 0
    """The best-ranked candidates that are passed over."""
    range_max: int | None = None
    """The last rank that is looked at."""
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    """s- <= s+ - margin"""
    relative_margin: float | None = None
    """s- <= s+ - |s+| margin: below the positive whatever the sign of its score"""

    @property
    def needs_positive(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None

    @property
    def needs_scores(self) -> bool:
        return self.needs_positive or self.max_score is not None or self.min_score is not None


def passing(
    filters: Filters, ranks: Positions | None, scores: Floats, lowest_positive: float | None
) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """(n,) which candidates every rule lets pass, and how many each active rule refuses.

    A candidate that several rules refuse counts for the first of them. `ranks` is None for a source
    without a ranking, where the rank window does not apply.
    """
    scores = scores.astype(np.float64)  # else a limit would be rounded to the scores' type
    rules: dict[str, npt.NDArray[np.bool_]] = {}
    if ranks is not None and filters.range_min:
        rules["range_min"] = ranks > filters.range_min
    if ranks is not None and filters.range_max is not None:
        rules["range_max"] = ranks <= filters.range_max
    if filters.max_score is not None:
        rules["max_score"] = scores <= filters.max_score
    if filters.min_score is not None:
        rules["min_score"] = scores >= filters.min_score
    if filters.needs_positive:
        if lowest_positive is None:
            raise ValueError("a margin needs the score of a positive")
        if filters.absolute_margin is not None:
            rules["absolute_margin"] = scores <= lowest_positive - filters.absolute_margin
        if filters.relative_margin is not None:
            limit = lowest_positive - abs(lowest_positive) * filters.relative_margin
            rules["relative_margin"] = scores <= limit
    left = np.ones(len(scores), bool)
    refused = {}
    for rule, passes in rules.items():
        refused[rule] = int((left & ~passes).sum())
        left &= passes
    return left, refused


def logit_of(probability: float) -> float:
    """The logit whose sigmoid is the probability; infinite for 0 and 1."""
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


class DatasetScope:
    """Which documents of a merged dataset may be negatives of which queries: those of their own
    dataset. A passage of another one was never judged for the query, nor is it hard."""

    def __init__(self, doc_ids: Sequence[str], names: Sequence[str]) -> None:
        self._number = {name: number for number, name in enumerate(names)}
        self._owner = owners(doc_ids, names)
        self._members = [np.flatnonzero(self._owner == number) for number in range(len(names))]

    def members(self, query_id: str) -> Positions:
        """Positions of the documents of the query's own dataset."""
        return self._members[self._number[dataset_name_of(query_id)]]

    def foreign(self, query_id: str, docs: Positions) -> npt.NDArray[np.bool_]:
        """(docs,) whether each document belongs to another dataset."""
        strangers: npt.NDArray[np.bool_] = (
            self._owner[docs] != self._number[dataset_name_of(query_id)]
        )
        return strangers
