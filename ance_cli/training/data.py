"""The data of a run, and the batches of a training step: pairs in a fixed order, with negatives
that may change.

The order of the (query, positive) pairs is a function of (seed, epoch) alone. Which negatives a
pair brings is drawn from the negatives in use, with a generator keyed by (seed, checkpoint step,
query, positive, epoch). So a new generation changes negatives, never the order, and a resumed run
sees exactly the batches that an uninterrupted run sees.

A document is its position in the corpus from the moment its line is read until its token rows are
looked up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ance_cli.call import SkippedLines
from ance_cli.config import TrainConfig
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Dataset, positives_of, read_corpus, read_qrels, read_queries
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.merged import dataset_name_of, owners, read_shares
from ance_cli.formats.negatives_file import PairNegatives, read_negatives
from ance_cli.formats.tokens import TokenRows
from ance_cli.mining.false_negatives import DuplicateIndex
from ance_cli.mining.sampling import keyed_generator
from ance_cli.training.dataset_mixing import mixed_order

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamPosition:
    """Progress in the pairs: `position` pairs of epoch `epoch` have been visited."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class TrainingSet:
    """Queries, positives and documents of a run, read once; the negatives of each generation are
    combined with them.

    `positives` maps a query to its positives, `shares` each dataset of a merged one to its share of
    the training.
    """

    config: TrainConfig
    dataset: Dataset
    corpus_hash: str
    queries: dict[str, str]
    positives: dict[str, list[str]]
    duplicates: DuplicateIndex
    shares: dict[str, float] | None = None
    skipped: SkippedLines | None = None

    @classmethod
    def read(
        cls, dataset: Dataset, config: TrainConfig, skipped: SkippedLines | None
    ) -> TrainingSet:
        """The dataset's parts, checked against each other."""
        queries = read_queries(dataset.need("queries"), skipped)
        corpus_hash = hash_file(dataset.corpus)
        duplicates = DuplicateIndex(read_corpus(dataset.corpus, skipped), queries)
        qrels = read_qrels(dataset.need("qrels"), queries, duplicates.position, skipped)
        positives = positives_of(qrels, config.min_rel)
        shares = read_shares(dataset)
        return cls(config, dataset, corpus_hash, queries, positives, duplicates, shares, skipped)

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """All (query, positive) ids, in the order of the labels."""
        return [(query_id, doc_id) for query_id, docs in self.positives.items() for doc_id in docs]

    @cached_property
    def query_ids(self) -> list[str]:
        """The queries that have a positive, sorted; a batch has their positions in this list."""
        return sorted({query_id for query_id, _ in self.pairs})

    @property
    def per_positive(self) -> int:
        """Negatives that each pair brings from a negatives file."""
        return self.config.negatives_per_positive if self.config.needs_negatives else 0

    def stream(self, negatives: Path | None, checkpoint_step: int) -> PairStream:
        """The pairs with the negatives of a file, checked; without negatives if there is no file,
        or the recipe needs none."""
        found: Iterable[PairNegatives] = ()
        if self.config.needs_negatives and negatives is not None:
            found = read_negatives(
                negatives, self.queries, self.duplicates.position, self.positives, self.skipped
            )
        return PairStream(self, found, checkpoint_step)

    def never_negatives(self, query_id: str) -> set[int]:
        """Positions of a query's positives, of their copies, and of the query itself."""
        return self.duplicates.never_negatives(query_id, self.positives[query_id])

    def banned(self, query_ids: list[str], docs: Ints) -> npt.NDArray[np.bool_]:
        """(queries, docs) whether a document can be no negative of a query: a known positive, a
        copy of one, the query itself, or a document of another dataset of a merged one."""
        column = {doc: place for place, doc in enumerate(docs.tolist())}
        banned = np.zeros((len(query_ids), len(docs)), np.bool_)
        for row, query_id in enumerate(query_ids):
            known = self.never_negatives(query_id)
            banned[row, [column[doc] for doc in known if doc in column]] = True
        if self.shares is not None:
            names = np.asarray([dataset_name_of(self.duplicates.doc_ids[doc]) for doc in column])
            own = np.asarray([dataset_name_of(query_id) for query_id in query_ids])
            banned |= own[:, None] != names
        return banned


@dataclass(frozen=True)
class Batch:
    """One micro-batch of all ranks together.

    `queries` (B,) positions in `TrainingSet.query_ids`; `docs` (D,) the distinct documents, as
    positions in the corpus; `members` (B, 1 + n) columns of `docs`, the positive first; `teacher`
    (B, 1 + n) float32 scores of a cross-encoder, NaN if it did not score; `banned` (B, D) as
    `TrainingSet.banned` says; `picks` (B,) uniform numbers in [0, 1).
    """

    queries: Ints
    docs: Ints
    members: Ints
    teacher: npt.NDArray[np.float32]
    banned: npt.NDArray[np.bool_]
    picks: npt.NDArray[np.float64]


class PairStream:
    """The pairs of a training set, with the negatives of one file."""

    def __init__(
        self, training_set: TrainingSet, negatives: Iterable[PairNegatives], checkpoint_step: int
    ) -> None:
        """`checkpoint_step`: the step of the checkpoint that the negatives were mined with.

        Negatives that are the query itself are left out, and counted in `num_queries_removed`.
        Raises `BadInput` if no pair has enough negatives. Pairs with too few are skipped, and
        counted in `num_skipped`.
        """
        self.training_set = training_set
        self.checkpoint_step = checkpoint_step
        self.pairs, self.per_positive = training_set.pairs, training_set.per_positive
        self._dataset_of_pair = None
        if training_set.shares is not None:
            query_ids = [query_id for query_id, _ in self.pairs]
            self._dataset_of_pair = owners(query_ids, list(training_set.shares))
        position = training_set.duplicates.position
        number = {query_id: place for place, query_id in enumerate(training_set.query_ids)}
        self._queries = [number[query_id] for query_id, _ in self.pairs]
        self._positives = [position[doc_id] for _, doc_id in self.pairs]
        self._negatives: list[Ints] = [np.zeros(0, np.int64)] * len(self.pairs)
        self._teacher: dict[int, npt.NDArray[np.float32]] = {}
        place_of = {pair: place for place, pair in enumerate(self.pairs)}
        self.num_queries_removed = 0
        for found in negatives:
            place = place_of[found.query_id, found.positive_id]
            docs = np.asarray([position[doc_id] for doc_id in found.negative_ids], np.int64)
            scores = np.asarray(found.teacher_scores, np.float32)  # None becomes NaN
            if itself := training_set.duplicates.itself(found.query_id):
                kept = ~np.isin(docs, list(itself))
                self.num_queries_removed += len(docs) - int(kept.sum())
                docs, scores = docs[kept], scores[kept] if len(scores) else scores
            self._negatives[place] = docs
            if found.teacher_positive_score is not None:
                positive = np.float32(found.teacher_positive_score)
                self._teacher[place] = np.concatenate([[positive], scores])
        self.num_skipped = sum(len(docs) < self.per_positive for docs in self._negatives)
        if self.num_skipped == len(self.pairs):
            raise BadInput(
                f"none of the {len(self.pairs)} pairs of the labels has {self.per_positive} "
                "negatives",
                hint="mine with a larger --depth, or use the split that they were mined for",
            )
        used = self._negatives if self.per_positive else []
        self.docs: Ints = np.unique(np.concatenate([np.asarray(self._positives), *used]))
        """(documents,) positions in the corpus of the documents that can be in a batch, sorted."""
        self._order: tuple[int, Ints] | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether any negative has a cross-encoder's score."""
        return bool(self._teacher)

    def order(self, epoch: int) -> Ints:
        """The permutation of the pairs in one epoch; for a merged dataset, by the shares."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._permutation(epoch))
        return self._order[1]

    def _permutation(self, epoch: int) -> Ints:
        seed, shares = self.training_set.config.seed, self.training_set.shares
        if self._dataset_of_pair is None or shares is None:
            return keyed_generator(seed, "order", epoch).permutation(len(self.pairs))
        return mixed_order(self._dataset_of_pair, list(shares.values()), seed, epoch)

    def picks(self, pair: int, epoch: int) -> Ints:
        """(per_positive,) which of its negatives a pair brings in an epoch."""
        if not self.per_positive:
            return np.zeros(0, np.int64)
        seed = self.training_set.config.seed
        rng = keyed_generator(seed, self.checkpoint_step, *self.pairs[pair], epoch)
        return rng.choice(len(self._negatives[pair]), self.per_positive, replace=False)

    def next_batch(self, at: StreamPosition, size: int) -> tuple[Batch, StreamPosition]:
        """The next `size` pairs that have negatives, and the position after them."""
        epoch, position = at.epoch, at.position
        queries: list[int] = []
        members = np.empty((size, 1 + self.per_positive), np.int64)
        teacher = np.full(members.shape, np.nan, np.float32)
        skipped = 0
        while len(queries) < size:
            if skipped == 2 * len(self.pairs):
                raise BadInput(
                    "none of the pairs of the datasets with a share has enough negatives",
                    hint="mine with a larger --depth, or give another dataset a share",
                )
            if position == len(self.pairs):
                epoch, position = epoch + 1, 0
            pair = int(self.order(epoch)[position])
            position += 1
            if len(self._negatives[pair]) < self.per_positive:
                skipped += 1
                continue
            skipped = 0
            picked, row = self.picks(pair, epoch), len(queries)
            members[row, 0] = self._positives[pair]
            members[row, 1:] = self._negatives[pair][picked]
            if pair in self._teacher:
                teacher[row] = self._teacher[pair][[0, *(1 + picked)]]
            queries.append(self._queries[pair])
        docs, columns = np.unique(members, return_inverse=True)
        names = [self.training_set.query_ids[query] for query in queries]
        rng = keyed_generator(self.training_set.config.seed, "batch", at.epoch, at.position)
        batch = Batch(
            np.asarray(queries, np.int64), docs, columns.reshape(members.shape), teacher,
            self.training_set.banned(names, docs), rng.random(size),
        )  # fmt: skip
        return batch, StreamPosition(epoch, position)


@dataclass(frozen=True)
class NegativesSnapshot:
    """Negatives ready for training: the pairs with them, and token rows of the stream's `docs`.

    `generation` and `checkpoint_step` are None if the negatives come from no generation or no
    checkpoint.
    """

    stream: PairStream
    passages: TokenRows
    generation: int | None = None
    checkpoint_step: int | None = None

    def rows_of(self, docs: Ints) -> tuple[Ints, Ints]:
        """`rows_of_docs` of some positions in the corpus."""
        return rows_of_docs(np.searchsorted(self.stream.docs, docs), self.passages)


def rows_of_docs(docs: Ints, passages: TokenRows) -> tuple[Ints, Ints]:
    """Token rows of some documents of `passages`, and which of them belong to each document.

    Returns `rows` (R,) row numbers in `passages`, document by document, and `rows_of` (D, S) places
    in `rows`, -1 if a document has fewer than S rows.
    """
    counts = passages.row_counts[docs].astype(np.int64)
    nth = np.arange(int(counts.max()))
    first = np.cumsum(counts) - counts
    present = nth < counts[:, None]
    rows_of = np.where(present, first[:, None] + nth, -1)
    rows = (passages.starts[docs][:, None] + nth)[present]
    return rows, rows_of
