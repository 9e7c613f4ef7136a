"""The stream of training pairs that a dataset's labels and one file of negatives make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ance_cli.call import SkippedLines
from ance_cli.config import TrainConfig
from ance_cli.formats.dataset import Dataset, positives_of, read_corpus, read_qrels, read_queries
from ance_cli.formats.merged import dataset_name_of, owners, read_shares
from ance_cli.formats.negatives_file import PairNegatives, read_negatives
from ance_cli.mining.filtering import DuplicateIndex

if TYPE_CHECKING:
    from ance_cli.training.data import PairStream


@dataclass(frozen=True)
class TrainingSet:
    """Queries, positives and documents of a run, read once; every generation makes a stream of
    them."""

    config: TrainConfig
    queries: dict[str, str]
    positives: dict[str, list[str]]
    duplicates: DuplicateIndex
    shares: dict[str, float] | None
    skipped: SkippedLines | None

    @classmethod
    def read(
        cls, dataset: Dataset, config: TrainConfig, skipped: SkippedLines | None
    ) -> TrainingSet:
        """The dataset's parts, checked against each other."""
        queries = read_queries(dataset.need("queries"), skipped)
        duplicates = DuplicateIndex(read_corpus(dataset.corpus, skipped))
        qrels = read_qrels(dataset.need("qrels"), queries, duplicates.position, skipped)
        positives = positives_of(qrels, config.min_rel)
        return cls(config, queries, positives, duplicates, read_shares(dataset), skipped)

    def stream(self, negatives: Path | None, checkpoint_step: int) -> PairStream:
        """The pairs with their negatives, checked; None where a step finds them by itself."""
        from ance_cli.training.data import PairStream

        config = self.config
        pairs = [(query_id, doc_id) for query_id, docs in self.positives.items() for doc_id in docs]
        listed: Iterable[PairNegatives] = ()
        if config.needs_negatives and negatives is not None:
            listed = read_negatives(
                negatives, self.queries, self.duplicates.position, self.positives, self.skipped
            )
        return PairStream(
            pairs,
            listed,
            self.duplicates.position,
            config.seed,
            checkpoint_step,
            config.negatives_per_positive if config.needs_negatives else 0,
            self._known,
            self._order(pairs),
            self._is_foreign if self.shares else None,
        )

    def _is_foreign(self, query_id: str, doc_id: str) -> bool:
        return dataset_name_of(query_id) != dataset_name_of(doc_id)

    def _known(self, query_id: str) -> set[str]:
        own, same = self.duplicates.banned(self.positives[query_id])
        return {self.duplicates.doc_ids[place] for place in own | same}

    def _order(self, pairs: list[tuple[str, str]]) -> Callable[[int], npt.NDArray[np.int64]] | None:
        """The order of a merged dataset's pairs, by the shares of its datasets."""
        if self.shares is None:
            return None
        from ance_cli.training.dataset_mixing import mixed_order

        owner = owners([query_id for query_id, _ in pairs], list(self.shares))
        parts = list(self.shares.values())
        return lambda epoch: mixed_order(owner, parts, self.config.seed, epoch)
