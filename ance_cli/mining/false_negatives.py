"""Documents that may never be negatives of a query: its positives, copies of its positives, the
query itself where it is a document, and documents of another dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ance_cli.formats.dataset import Passage, text_hash
from ance_cli.formats.merged import dataset_name_of, owners
from ance_cli.mining.sampling import Positions


class DuplicateIndex:
    """Documents with the same text: positions in corpus order, grouped by a hash of the body.

    With `queries` (query_id -> text), it also knows the documents that are a query, as in
    duplicate-question and argument retrieval: those with its text, and the one with its id if one
    text contains the other. An equal id alone says nothing: many collections number both from 1.
    """

    def __init__(self, passages: Iterable[Passage], queries: Mapping[str, str] = {}) -> None:
        self.doc_ids: list[str] = []
        hashes: list[int] = []
        asked = {query_id: text_hash(text) for query_id, text in queries.items()}
        with_text: dict[int, list[int]] = {value: [] for value in asked.values()}
        by_id: dict[str, int] = {}
        for place, passage in enumerate(passages):
            self.doc_ids.append(passage.doc_id)
            if passage.doc_id in queries and _overlap(queries[passage.doc_id], passage):
                by_id[passage.doc_id] = place
            value = passage.body_hash()
            hashes.append(value)
            if value in with_text:
                with_text[value].append(place)
            elif passage.title and passage.text and asked:
                whole = text_hash(passage.joined(" "))
                if whole in with_text:
                    with_text[whole].append(place)
        repeated = {value for value, count in Counter(hashes).items() if count > 1}
        groups: dict[int, list[int]] = defaultdict(list)
        for place, value in enumerate(hashes):
            if value in repeated:
                groups[value].append(place)
        self._group_of = {place: group for group in groups.values() for place in group}
        self.position: Mapping[str, int] = {
            doc_id: place for place, doc_id in enumerate(self.doc_ids)
        }
        self._itself = {
            query_id: places
            for query_id, value in asked.items()
            if (places := {*with_text[value], *([by_id[query_id]] if query_id in by_id else [])})
        }

    def banned(self, positives: Iterable[str]) -> tuple[set[int], set[int]]:
        """Positions of the positives, and of other documents with the text of a positive."""
        own = {self.position[doc_id] for doc_id in positives}
        same = {copy for place in own for copy in self._group_of.get(place, ())}
        return own, same - own

    def itself(self, query_id: str) -> set[int]:
        """Positions of the documents that are the query: with its id, with its text, or a copy of
        those. Empty for most datasets."""
        if query_id not in self._itself:
            return set()
        own = self._itself[query_id]
        return own | {copy for place in own for copy in self._group_of.get(place, ())}

    def never_negatives(self, query_id: str, positives: Iterable[str]) -> set[int]:
        """Positions of the positives, of their copies, and of the query itself."""
        own, same = self.banned(positives)
        return own | same | self.itself(query_id)


def _overlap(query: str, passage: Passage) -> bool:
    """Whether the text of the query contains that of the passage, or the other way round."""
    texts = [" ".join(text.lower().split()) for text in (query, passage.joined(" "))]
    return bool(texts[0] and texts[1]) and (texts[0] in texts[1] or texts[1] in texts[0])


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
