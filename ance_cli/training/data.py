"""What a training step sees: an order of pairs that never changes, and negatives that may.

The stream of (query, positive) pairs is a function of (seed, epoch, position) alone. Which
negatives a pair brings is looked up in the negatives in use, with a generator keyed by (seed,
checkpoint step, query, positive, epoch). So new negatives change negatives, never the order, and a
resumed run sees exactly the batches that an uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.errors import BadInput
from ance_cli.formats.negatives_file import PairNegatives
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.tokens import TokenRows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamPosition:
    """Where the stream stands: `position` pairs of epoch `epoch` have been visited."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class Batch:
    """One micro-batch of all ranks together, in numbers of queries and documents.

    `queries` (B,) numbers of queries; `docs` (D,) the distinct documents in it; `members`
    (B, 1 + n) places in `docs`, the positive first; `teacher` (B, 1 + n) float32 scores of a
    cross-encoder, NaN where there is none; `banned` (B, D) bool: documents that are a known
    positive of the query, or a copy of one; `picks` (B,) uniform numbers in [0, 1).
    """

    queries: Ints
    docs: Ints
    members: Ints
    teacher: npt.NDArray[np.float32]
    banned: npt.NDArray[np.bool_]
    picks: npt.NDArray[np.float64]


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
        known: Callable[[str], set[str]] = lambda query_id: set(),
        order: Callable[[int], Ints] | None = None,
        is_foreign: Callable[[str, str], bool] | None = None,
    ) -> None:
        """`pairs` are all (query, positive) pairs of the labels, in their order; `corpus_order`
        gives each document's position, and `doc_ids` lists those that occur in that order; `known`
        gives a query's positives and their copies; `order` the permutation of the pairs in an
        epoch, where it is not simply a random one; `is_foreign` says of a query and a document
        whether they belong to different datasets of a merged one.

        Raises `BadInput` where no pair has `per_positive` negatives. Pairs with fewer are skipped
        and counted in `num_skipped`.
        """
        self.pairs = pairs
        self.seed = seed
        self.checkpoint_step = checkpoint_step
        self.per_positive = per_positive
        self.known = known
        listed = {(pair.query_id, pair.positive_id): pair for pair in negatives}
        nothing = PairNegatives("", "", [])
        self.negatives = [listed.get(pair, nothing) for pair in pairs]
        self.num_skipped = sum(len(found.negative_ids) < per_positive for found in self.negatives)
        if self.num_skipped == len(pairs):
            raise BadInput(
                f"none of the {len(pairs)} pairs of the labels has {per_positive} negatives",
                hint="mine with a greater --depth, or name the split they were mined for",
            )
        query_ids = {query_id for query_id, _ in pairs}
        doc_ids = {doc_id for _, doc_id in pairs}
        if per_positive:
            doc_ids.update(*(found.negative_ids for found in self.negatives))
        self.query_ids = sorted(query_ids)
        self.doc_ids = sorted(doc_ids, key=corpus_order.__getitem__)
        self._query_number = {name: number for number, name in enumerate(self.query_ids)}
        self._doc_number = {name: number for number, name in enumerate(self.doc_ids)}
        self._is_foreign = is_foreign
        self._permutation = order or self._random_order
        self._order: tuple[int, Ints] | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether any negative carries a cross-encoder's score."""
        return any(found.teacher_positive_score is not None for found in self.negatives)

    def _random_order(self, epoch: int) -> Ints:
        return keyed_generator(self.seed, "order", epoch).permutation(len(self.pairs))

    def order(self, epoch: int) -> Ints:
        """The permutation of the pairs in one epoch."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._permutation(epoch))
        return self._order[1]

    def picks(self, pair: int, epoch: int) -> list[int]:
        """Which of its negatives a pair brings in an epoch: `per_positive` places among them."""
        if not self.per_positive:
            return []
        query_id, positive_id = self.pairs[pair]
        rng = keyed_generator(self.seed, self.checkpoint_step, query_id, positive_id, epoch)
        have = len(self.negatives[pair].negative_ids)
        return rng.choice(have, self.per_positive, replace=False).tolist()  # type: ignore[no-any-return]

    def next_batch(self, at: StreamPosition, size: int) -> tuple[Batch, StreamPosition]:
        """The next `size` pairs that have negatives, and where the stream then stands."""
        epoch, position = at.epoch, at.position
        queries: list[int] = []
        members: list[list[int]] = []
        teacher = np.full((size, 1 + self.per_positive), np.nan, np.float32)
        passed_over = 0
        while len(queries) < size:
            if passed_over == 2 * len(self.pairs):
                raise BadInput(
                    "none of the pairs that the shares of the datasets let come has enough "
                    "negatives",
                    hint="mine with a greater --depth, or give another dataset a share",
                )
            if position == len(self.pairs):
                epoch, position = epoch + 1, 0
            pair = int(self.order(epoch)[position])
            position += 1
            found = self.negatives[pair]
            if len(found.negative_ids) < self.per_positive:
                passed_over += 1
                continue
            passed_over = 0
            query_id, positive_id = self.pairs[pair]
            picked = self.picks(pair, epoch)
            if found.teacher_positive_score is not None:
                scores = [found.teacher_scores[place] for place in picked]
                teacher[len(queries)] = [found.teacher_positive_score, *scores]  # None is NaN
            names = [positive_id, *(found.negative_ids[place] for place in picked)]
            queries.append(self._query_number[query_id])
            members.append([self._doc_number[name] for name in names])
        docs, places = np.unique(np.asarray(members, np.int64), return_inverse=True)
        rng = keyed_generator(self.seed, "batch", at.epoch, at.position)
        batch = Batch(
            np.asarray(queries, np.int64), docs, places.reshape(size, -1), teacher,
            self._banned(queries, docs), rng.random(size),
        )  # fmt: skip
        return batch, StreamPosition(epoch, position)

    def _banned(self, queries: list[int], docs: Ints) -> npt.NDArray[np.bool_]:
        """(B, D) whether a document is a known positive of the query, a copy of one, or of another
        dataset."""
        place = {self.doc_ids[doc]: column for column, doc in enumerate(docs.tolist())}
        banned = np.zeros((len(queries), len(docs)), np.bool_)
        for row, query in enumerate(queries):
            columns = [place[name] for name in self.known(self.query_ids[query]) if name in place]
            banned[row, columns] = True
            if self._is_foreign is not None:
                query_id = self.query_ids[query]
                banned[row] |= [self._is_foreign(query_id, name) for name in place]
        return banned


def rows_of_docs(docs: Ints, passages: TokenRows) -> tuple[Ints, Ints]:
    """Token rows of some documents, and which of them belong to each.

    Returns `rows` (R,) row numbers in `passages`, document by document, and `rows_of` (D, S) places
    in `rows`, -1 where a document has fewer than S rows.
    """
    counts = passages.row_counts[docs].astype(np.int64)
    nth = np.arange(int(counts.max()))
    first = np.cumsum(counts) - counts
    present = nth < counts[:, None]
    rows_of = np.where(present, first[:, None] + nth, -1)
    rows = (passages.starts[docs][:, None] + nth)[present]
    return rows, rows_of
