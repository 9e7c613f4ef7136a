"""ADORE (Zhan et al., 2021): each step retrieves its negatives with the query encoder in training,
from the vectors of a frozen passage encoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ance_cli.formats.embeddings import VECTORS, Embeddings
from ance_cli.formats.tokens import TokenRows
from ance_cli.mining.false_negatives import DatasetScope
from ance_cli.mining.sampling import keyed_generator
from ance_cli.retrieval.exact import pool_to_documents
from ance_cli.training.data import Ints, TrainingSet, rows_of_docs
from ance_cli.training.loss import doc_scores

_ROWS_AT_ONCE = 262_144


class LiveNegatives:
    """The top `live_depth` documents of the whole corpus for each query of a step, without its
    positives and itself.

    `negatives_per_positive` of them are drawn uniformly for each pair, with a generator keyed by
    (seed, step, query, positive), so the draw does not depend on the rank that makes it.
    """

    def __init__(
        self, embeddings: Embeddings, training_set: TrainingSet, device: torch.device
    ) -> None:
        """`embeddings`: the vectors of the training set's corpus."""
        config = training_set.config
        self.training_set = training_set
        self.device = device
        self.depth = min(config.live_depth, embeddings.num_docs)
        self.count = config.negatives_per_positive
        for _ in embeddings.blocks():
            pass  # each block's hash is checked as it is read
        # on a GPU the matrix is in its memory; on a CPU it stays on disk, mapped copy-on-write
        # because torch has no read-only memory
        mapped = np.load(embeddings.folder / VECTORS, mmap_mode="c", allow_pickle=False)
        self.vectors = torch.from_numpy(mapped).to(device)
        self.max_segments = embeddings.max_segments
        self.doc_of_row = embeddings.doc_of_row()
        shares = training_set.shares
        self.scope = DatasetScope(embeddings.ids, list(shares)) if shares else None
        offsets = np.asarray(embeddings.doc_offsets, np.int64)
        # only the number of rows of each document is used: the passages are not encoded again
        self._rows = TokenRows(np.zeros(0, np.int32), offsets, np.diff(offsets).astype(np.int32))

    def scores(self, q: Tensor, queries: Ints, positives: Ints, step: int) -> tuple[Tensor, Tensor]:
        """(b, D) scores of the queries with the D documents retrieved for any of them, and
        (b, 1 + count) columns, the positive first; -1 if fewer than `count` negatives were found.

        `q` (b, d) vectors; `queries` (b,) positions in `TrainingSet.query_ids`; `positives` (b,)
        positions in the corpus.
        """
        names = [self.training_set.query_ids[query] for query in queries]
        found = self.search(q.detach())
        drawn = [
            self._draw(ranked, step, query_id, positive)
            for ranked, query_id, positive in zip(found, names, positives.tolist(), strict=True)
        ]
        docs = np.unique(np.concatenate([positives, *drawn]))
        members = np.full((len(positives), 1 + self.count), -1, np.int64)
        members[:, 0] = np.searchsorted(docs, positives)
        for row, negatives in enumerate(drawn):
            members[row, 1 : 1 + len(negatives)] = np.searchsorted(docs, negatives)
        rows, rows_of = rows_of_docs(docs, self._rows)
        vectors = self.vectors[torch.from_numpy(rows).to(self.device)].float()
        scores = doc_scores(q, vectors, torch.from_numpy(rows_of).to(self.device))
        return scores, torch.from_numpy(members).to(self.device)

    @torch.no_grad()
    def search(self, q: Tensor) -> npt.NDArray[np.int32]:
        """(b, depth) positions of documents, best first, -1 = none. `q` (b, d)."""
        k = self.depth * self.max_segments
        best, rows = q.new_empty((len(q), 0)), torch.empty((len(q), 0), dtype=torch.long)
        rows = rows.to(self.device)
        for first in range(0, len(self.vectors), _ROWS_AT_ONCE):
            part = q @ self.vectors[first : first + _ROWS_AT_ONCE].float().T
            top = part.topk(min(k, part.shape[1]))
            best = torch.cat([best, top.values], 1)
            rows = torch.cat([rows, top.indices + first], 1)
            kept = best.topk(min(k, best.shape[1]))
            best, rows = kept.values, rows.gather(1, kept.indices)
        D, I = best.cpu().numpy(), rows.cpu().numpy()  # noqa: E741
        return pool_to_documents(D, I, self.doc_of_row, self.depth)[1]

    def _draw(self, ranked: npt.NDArray[np.int32], step: int, query_id: str, positive: int) -> Ints:
        banned = self.training_set.never_negatives(query_id)
        ranked = ranked[ranked >= 0]
        if self.scope is not None:
            ranked = ranked[~self.scope.foreign(query_id, ranked.astype(np.int64))]
        allowed = [doc for doc in ranked.tolist() if doc not in banned]
        seed, doc_id = self.training_set.config.seed, self.training_set.duplicates.doc_ids[positive]
        rng = keyed_generator(seed, "live", step, query_id, doc_id)
        kept = rng.choice(len(allowed), min(self.count, len(allowed)), replace=False)
        return np.asarray([allowed[place] for place in kept.tolist()], np.int64)
