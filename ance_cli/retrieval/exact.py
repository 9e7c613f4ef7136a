"""Exact top-k over memory-mapped embeddings, block by block, in bounded memory.

Every function ranks by inner product and orders ties by position, ascending; which of several rows
that tie at the cut are kept is the matrix library's choice.

Shapes: xq (nq, d) float32 queries, D (nq, k) float32 scores, I (nq, k) int64 positions, -1 where
there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ance_cli.formats.embeddings import Embeddings

if TYPE_CHECKING:
    import torch

Scores = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

_QUERY_BATCH = 16_384


def in_order(D: Scores, I: npt.NDArray[Any]) -> tuple[Scores, npt.NDArray[Any]]:  # noqa: E741
    """Each row by score, descending, ties by position, ascending; empty places (-1) last."""
    empty = I < 0
    order = np.lexsort((np.where(empty, np.iinfo(np.int64).max, I), np.where(empty, np.inf, -D)))
    return np.take_along_axis(D, order, 1), np.take_along_axis(I, order, 1)


def _block_top_k(
    xq: Scores, xb: npt.NDArray[Any], k: int, device: torch.device | None
) -> tuple[Scores, Positions]:
    if device is None or device.type == "cpu":
        import faiss

        D, I = faiss.knn(xq, np.ascontiguousarray(xb, np.float32), k, faiss.METRIC_INNER_PRODUCT)  # noqa: E741
        return D, I
    import torch

    with torch.inference_mode():
        vectors = torch.from_numpy(np.array(xb)).to(device).float()
        scores = torch.from_numpy(xq).to(device) @ vectors.T
        top = torch.topk(scores, k, dim=1)
        return top.values.cpu().numpy(), top.indices.cpu().numpy()


def exact_top_k(
    xq: Scores,
    embeddings: Embeddings,
    k: int,
    device: torch.device | None = None,
    on_block: Callable[[int], None] | None = None,
) -> tuple[Scores, Positions]:
    """The `k` rows of the embeddings with the greatest inner product with each query.

    Reads each block once (its hash is checked), on the CPU through faiss and on a GPU through a
    matrix product. `on_block` hears of the rows of each block searched. k may exceed the rows:
    the rest is -1.
    """
    nq = len(xq)
    if not nq:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
    D = np.full((nq, 0), -np.inf, np.float32)
    I = np.full((nq, 0), -1, np.int64)  # noqa: E741
    for first, xb in embeddings.blocks():
        parts = []
        for start in range(0, nq, _QUERY_BATCH):
            batch = slice(start, start + _QUERY_BATCH)
            D_block, I_block = _block_top_k(xq[batch], xb, min(k, len(xb)), device)
            parts.append(
                in_order(
                    np.concatenate([D[batch], D_block], 1),
                    np.concatenate([I[batch], I_block + first], 1),
                )
            )
        D = np.concatenate([part[0][:, :k] for part in parts])
        I = np.concatenate([part[1][:, :k] for part in parts])  # noqa: E741
        if on_block:
            on_block(len(xb))
    missing = k - D.shape[1]
    if missing > 0:
        D = np.pad(D, ((0, 0), (0, missing)), constant_values=-np.inf)
        I = np.pad(I, ((0, 0), (0, missing)), constant_values=-1)  # noqa: E741
    return D, I


def pool_to_documents(
    D: Scores,
    I: npt.NDArray[Any],  # noqa: E741
    doc_of_row: npt.NDArray[np.int32],
    depth: int,
) -> tuple[Scores, npt.NDArray[np.int32]]:
    """MaxP: a document's score is the maximum over its rows (ICLR Sec. 5). Keep `depth` of them.

    Rows arrive best first, so a document's first row is its best.
    """
    nq = len(I)
    scores = np.full((nq, depth), -np.inf, np.float32)
    docs = np.full((nq, depth), -1, np.int32)
    for query in range(nq):
        rows = I[query][I[query] >= 0]
        owners, first = np.unique(doc_of_row[rows], return_index=True)
        best = np.argsort(first, kind="stable")[:depth]
        docs[query, : len(best)] = owners[best]
        scores[query, : len(best)] = D[query, first[best]]
    return in_order(scores, docs)


def positive_scores(
    xq: Scores, query_ids: list[str], positives: dict[str, list[str]], embeddings: Embeddings
) -> dict[str, dict[str, float]]:
    """Exact score of each positive: the maximum over its rows of the inner product."""
    position = {doc_id: place for place, doc_id in enumerate(embeddings.ids)}
    found: dict[str, dict[str, float]] = {}
    for x, query_id in zip(xq, query_ids, strict=True):
        scores = {}
        for doc_id in positives.get(query_id, []):
            place = position[doc_id]
            first, last = embeddings.doc_offsets[place], embeddings.doc_offsets[place + 1]
            rows = embeddings.vectors[first:last].astype(np.float32)
            scores[doc_id] = round(float((rows @ x).max()), 6)
        found[query_id] = scores
    return found
