"""Documents that may never be negatives of a query: its positives, copies of its positives, and
documents of another dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ance_cli.formats.dataset import Passage
from ance_cli.formats.merged import dataset_name_of, owners
from ance_cli.mining.sampling import Positions


class DuplicateIndex:
    """Documents with the same text: positions in corpus order, grouped by a hash of the body."""

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
        """Positions of the positives, and of other documents with the text of a positive."""
        own = {self.position[doc_id] for doc_id in positives}
        same = {copy for place in own for copy in self._group_of.get(place, ())}
        return own, same - own


class DatasetScope:
    """In a merged dataset, only documents of a query's own dataset may be its negatives. A passage
    of another dataset was never judged for the query, and is not hard either."""

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
