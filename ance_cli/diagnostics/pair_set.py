"""The pairs that are analysed: a sample of the queries, each with one positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.config import DiagnoseConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.embeddings import Embeddings
from ance_cli.mining.mining_data import MiningData
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever

if TYPE_CHECKING:
    from ance_cli.diagnostics.corpus_scores import PairLoss

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampledPair:
    """A query and one of its positives; `positive` is the positive's position in the corpus."""

    query_id: str
    text: str
    positive_id: str
    positive: int


@dataclass(frozen=True)
class PairSet:
    """The sampled pairs, and what their analyses share.

    `embeddings` are the vectors of the corpus; `retriever` searches them, or an index.
    """

    pairs: list[SampledPair]
    data: MiningData
    dataset: Dataset
    retriever: DenseRetriever
    embeddings: Embeddings
    checkpoint: Checkpoint
    loss: PairLoss
    config: DiagnoseConfig
    call: Call

    @property
    def ranks(self) -> Positions:
        """The ranks, from 0, at which the tail of the scores is kept."""
        return ranks_to_show(self.embeddings.num_docs, self.config.depth)


def sample_pairs(data: MiningData, config: DiagnoseConfig) -> list[SampledPair]:
    """Queries, uniformly, and one positive of each; a function of the seed and the labels."""
    rng = keyed_generator(config.seed, "diagnose")
    names = list(data.queries)
    chosen = np.sort(rng.choice(len(names), min(config.sample, len(names)), replace=False))
    pairs = []
    for query_id in (names[number] for number in chosen.tolist()):
        positives = data.positives[query_id]
        positive_id = positives[int(rng.integers(len(positives)))]
        position = data.duplicates.position[positive_id]
        pairs.append(SampledPair(query_id, data.queries[query_id], positive_id, position))
    return pairs


def banned_docs(data: MiningData, query_id: str) -> set[int]:
    """Positions of the query's positives (D+), of their duplicates, and of the query itself."""
    return data.duplicates.never_negatives(query_id, data.positives[query_id])


def negatives_of(data: MiningData, query_id: str, banned: set[int]) -> Positions:
    """Positions of C \\ D+, without duplicates of D+, the query itself, and documents of other
    datasets."""
    left = np.ones(len(data.duplicates.doc_ids), bool)
    left[list(banned)] = False
    if data.scope is not None:
        left &= ~data.scope.foreign(query_id, np.arange(len(left)))
    if not left.any():
        raise UsageProblem(
            f"query {query_id!r}: every document is a positive or a duplicate of one, so that the "
            "query has no negatives"
        )
    return np.flatnonzero(left)


def ranks_to_show(num_docs: int, depth: int) -> Positions:
    """Every rank of the top (from 0), and up to sixty ranks below it at growing distances."""
    depth = min(depth, num_docs)
    beyond = np.geomspace(depth, max(num_docs - 1, depth), 60).astype(np.int64)
    shown = np.unique(np.concatenate([np.arange(depth), beyond]))
    return shown[shown < num_docs]
