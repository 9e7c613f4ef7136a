"""What may never be a negative: every known positive of the query, and every copy of one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from ance_cli.formats.dataset import Passage


class Copies:
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
