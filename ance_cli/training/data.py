"""What a training step sees: an order of pairs that never changes, and negatives that may.

The stream of (query, positive) pairs is a function of (seed, epoch, position) alone. Which
negatives a pair brings is looked up in the negatives in use, with a generator keyed by (seed,
checkpoint step, query, positive, epoch). So new negatives change negatives, never the order, and a
resumed run sees exactly the batches that an uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.errors import BadInput
from ance_cli.formats.triples import PairNegatives
from ance_cli.models.tokens import TokenRows
from ance_cli.negatives.sampling import keyed_generator

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamPosition:
    """Where the stream stands: `position` pairs of epoch `epoch` have been visited."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class Batch:
    """One micro-batch, in numbers of queries and documents.

    `queries` (B,) numbers of queries; `docs` (D,) the distinct documents in it; `members`
    (B, 1 + n) places in `docs`, the positive first.
    """

    queries: Ints
    docs: Ints
    members: Ints
    epoch: int


class PairStream:
    """Pairs of the labels in an order fixed by the seed, with the negatives of one generation."""

    def __init__(
        self,
        pairs: list[tuple[str, str]],
        negatives: Iterable[PairNegatives],
        corpus_order: Mapping[str, int],
        seed: int,
        checkpoint_step: int,
        per_positive: int,
    ) -> None:
        """`pairs` are all (query, positive) pairs of the labels, in their order; `corpus_order`
        gives each document's position, and `doc_ids` lists those that occur in that order.

        Raises `BadInput` where no pair has `per_positive` negatives. Pairs with fewer are skipped
        and counted in `num_skipped`.
        """
        self.pairs = pairs
        self.seed = seed
        self.checkpoint_step = checkpoint_step
        self.per_positive = per_positive
        listed = {(pair.query_id, pair.positive_id): pair.negative_ids for pair in negatives}
        self.negatives = [listed.get(pair, []) for pair in pairs]
        self.num_skipped = sum(len(found) < per_positive for found in self.negatives)
        if self.num_skipped == len(pairs):
            raise BadInput(
                f"none of the {len(pairs)} pairs of the labels has {per_positive} negatives",
                hint="mine with a greater --depth, or name the split they were mined for",
            )
        query_ids = {query_id for query_id, _ in pairs}
        doc_ids = {doc_id for _, doc_id in pairs}.union(*self.negatives)
        self.query_ids = sorted(query_ids)
        self.doc_ids = sorted(doc_ids, key=corpus_order.__getitem__)
        self._query_number = {name: number for number, name in enumerate(self.query_ids)}
        self._doc_number = {name: number for number, name in enumerate(self.doc_ids)}
        self._order: tuple[int, Ints] | None = None

    def order(self, epoch: int) -> Ints:
        """The permutation of the pairs in one epoch."""
        if self._order is None or self._order[0] != epoch:
            rng = keyed_generator(self.seed, "order", epoch)
            self._order = (epoch, rng.permutation(len(self.pairs)))
        return self._order[1]

    def picks(self, pair: int, epoch: int) -> list[str]:
        """The negatives that a pair brings in an epoch: `per_positive` of those it has."""
        query_id, positive_id = self.pairs[pair]
        rng = keyed_generator(self.seed, self.checkpoint_step, query_id, positive_id, epoch)
        have = self.negatives[pair]
        chosen = rng.choice(len(have), self.per_positive, replace=False)
        return [have[place] for place in chosen.tolist()]

    def next_batch(self, at: StreamPosition, size: int) -> tuple[Batch, StreamPosition]:
        """The next `size` pairs that have negatives, and where the stream then stands."""
        epoch, position = at.epoch, at.position
        queries: list[int] = []
        members: list[list[int]] = []
        while len(queries) < size:
            if position == len(self.pairs):
                epoch, position = epoch + 1, 0
            pair = int(self.order(epoch)[position])
            position += 1
            if len(self.negatives[pair]) < self.per_positive:
                continue
            query_id, positive_id = self.pairs[pair]
            queries.append(self._query_number[query_id])
            names = [positive_id, *self.picks(pair, epoch)]
            members.append([self._doc_number[name] for name in names])
        docs, places = np.unique(np.asarray(members, np.int64), return_inverse=True)
        batch = Batch(np.asarray(queries, np.int64), docs, places.reshape(len(members), -1), epoch)
        return batch, StreamPosition(epoch, position)


def rows_of_members(batch: Batch, passages: TokenRows) -> tuple[Ints, Ints]:
    """Token rows to encode for a batch, and the rows of each member.

    Returns `rows` (R,) row numbers in `passages`, and `rows_of` (B, 1 + n, S) places in `rows`,
    -1 where a document has fewer than S rows.
    """
    counts = passages.row_counts[batch.docs]
    places = np.full((len(batch.docs), int(counts.max())), -1, np.int64)
    rows: list[int] = []
    for doc, (number, count) in enumerate(zip(batch.docs, counts, strict=True)):
        places[doc, :count] = np.arange(len(rows), len(rows) + count)
        first = int(passages.starts[number])
        rows.extend(range(first, first + int(count)))
    return np.asarray(rows, np.int64), places[batch.members]
