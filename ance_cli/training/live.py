"""ADORE (Zhan et al., 2021): negatives retrieved at each step by the query tower as it stands, from
the vectors of a frozen passage tower."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ance_cli.formats.embeddings import VECTORS, Embeddings
from ance_cli.mining.filtering import DatasetScope
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.tokens import TokenRows
from ance_cli.retrieval.exact import pool_to_documents
from ance_cli.training.data import Ints, rows_of_docs
from ance_cli.training.loss import doc_scores

_ROWS_AT_ONCE = 262_144


class LiveNegatives:
    """Top `depth` of the whole corpus for each query of a step, without its positives.

    `count` of them are drawn uniformly for each pair, with a generator keyed by (seed, step, query,
    positive), so the draw does not depend on the rank that makes it. `known` gives a query's
    positives and their copies, `scope` the datasets of a merged one.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        device: torch.device,
        known: Callable[[str], set[str]],
        depth: int,
        count: int,
        seed: int,
        scope: DatasetScope | None = None,
    ) -> None:
        self.device = device
        for _ in embeddings.blocks():
            pass  # each block's hash is checked as it is read
        # on a GPU the matrix lives there; on a CPU it stays on disk, mapped copy-on-write since
        # torch knows no read-only memory
        mapped = np.load(embeddings.folder / VECTORS, mmap_mode="c", allow_pickle=False)
        self.vectors = torch.from_numpy(mapped).to(device)
        self.max_segments = embeddings.max_segments
        self.doc_of_row = embeddings.doc_of_row()
        self.known = known
        self.depth = depth
        self.count = count
        self.seed = seed
        self.scope = scope
        self.position = {doc_id: place for place, doc_id in enumerate(embeddings.ids)}
        offsets = np.asarray(embeddings.doc_offsets, np.int64)
        # only its counts of rows are used: the tokens were encoded long ago
        self._rows = TokenRows(np.zeros(0, np.int32), offsets, np.diff(offsets).astype(np.int32))

    def scores(
        self, q: Tensor, query_ids: list[str], positives: list[str], step: int
    ) -> tuple[Tensor, Tensor]:
        """(b, D) scores of the queries with the documents that they met, and (b, 1 + count) places
        in D, the positive first; -1 where fewer than `count` negatives were found."""
        found = self.search(q.detach())
        own = [self.position[name] for name in positives]
        drawn = [self._draw(row, step, *pair) for row, *pair in zip(found, query_ids, positives,
                                                                    strict=True)]  # fmt: skip
        docs = np.unique(np.concatenate([np.asarray(own, np.int64), *drawn]))
        members = np.full((len(own), 1 + self.count), -1, np.int64)
        for row, (positive, negatives) in enumerate(zip(own, drawn, strict=True)):
            members[row, 0] = np.searchsorted(docs, positive)
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

    def _draw(self, ranked: npt.NDArray[np.int32], step: int, query_id: str, positive: str) -> Ints:
        banned = {self.position[name] for name in self.known(query_id)}
        ranked = ranked[ranked >= 0]
        if self.scope is not None:
            ranked = ranked[~self.scope.foreign(query_id, ranked.astype(np.int64))]
        allowed = [doc for doc in ranked.tolist() if doc not in banned]
        rng = keyed_generator(self.seed, "live", step, query_id, positive)
        kept = rng.choice(len(allowed), min(self.count, len(allowed)), replace=False)
        return np.asarray([allowed[place] for place in kept.tolist()], np.int64)
