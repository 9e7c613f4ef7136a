"""The best rows of one chunk for a batch of queries, by faiss or by a matrix product.

Scores are inner products. The order is by descending score, then by ascending position. It does not
depend on the library, although each library keeps other rows of those that tie at the cut.

Shapes: q (b, d) queries, x (n, d) rows, D (b, k) float32 scores, I (b, k) int64 positions, S (b, n)
scores of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BATCH = 4_096
"""The most queries in a batch; every batch is a power of two.

The last bits of a score depend on how many queries its matrix product has. So a search of some
queries only gives the bits of a search of all if it begins at a multiple of `BATCH`, and ends at
one or with the last query: then every product has the same queries. faiss multiplies 4,096 queries
at a time, so larger batches gain nothing (docs/evidence/measurements.md).
"""

_SCORE_BYTES = {"cuda": 1 << 30, "cpu": 128 << 20}
_RESULT_BYTES = 256 << 20
_GROUP = 64
_TIED_AT_ONCE = 64


# ---------------------------------------------------------------- order


def sorted_places(D: Tensor, I: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Each row by descending score, ties by ascending position."""
    by_place = I.argsort(1)
    D, I = D.gather(1, by_place), I.gather(1, by_place)  # noqa: E741
    D, by_score = D.sort(dim=1, descending=True, stable=True)
    return D, I.gather(1, by_score)


def first_of_ties(S: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns in order, k <= n. Of the columns that tie at the cut, the first are
    kept."""
    cut = S.topk(k, 1).values[:, -1:]
    above, equal = cut < S, cut == S
    room = k - above.sum(1, keepdim=True)
    kept = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    I = kept.nonzero()[:, 1].view(len(S), k)  # noqa: E741
    D, by_score = S.gather(1, I).sort(dim=1, descending=True, stable=True)
    return D, I.gather(1, by_score)


def settle_ties(
    D: Tensor,
    I: Tensor,  # noqa: E741
    k: int,
    floor: Tensor,
    scores_of: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The k best in order, from the k + 1 best (or all) that a library found.

    Scores up to `floor` (b,) do not matter. If the cut divides a tie, the queries are ranked again
    by `scores_of` (t,) -> (t, n). Such ties are rare, and so are ties among the k best.
    """
    tied = (D[:, 1:] == D[:, :-1]) & (D[:, 1:] > floor[:, None])
    if len(inside := tied[:, : k - 1].any(1).nonzero()[:, 0]):
        D[inside, :k], I[inside, :k] = sorted_places(D[inside, :k], I[inside, :k])
    if D.shape[1] > k:
        for some in torch.split(tied[:, k - 1].nonzero()[:, 0], _TIED_AT_ONCE):
            D[some, :k], I[some, :k] = first_of_ties(scores_of(some), k)
    return D[:, :k], I[:, :k]


def best_documents(D: Tensor, docs: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """MaxP over rows that arrive best first: a document's first row is its best.

    `docs` (b, k) are the documents of the rows, -1 = none. Returns (b, depth) scores and documents,
    padded with -inf and -1.
    """
    by_doc, place = docs.sort(dim=1, stable=True)
    again = torch.zeros_like(by_doc, dtype=torch.bool)
    again[:, 1:] = by_doc[:, 1:] == by_doc[:, :-1]
    dropped = torch.zeros_like(again).scatter_(1, place, again) | (docs < 0)
    order = dropped.to(torch.uint8).sort(dim=1, stable=True).indices[:, :depth]
    gone = dropped.gather(1, order)
    D = D.gather(1, order).masked_fill_(gone, -torch.inf)
    docs = docs.gather(1, order).masked_fill_(gone, -1)
    missing = (0, depth - order.shape[1])
    return (
        torch.nn.functional.pad(D, missing, value=-torch.inf),
        torch.nn.functional.pad(docs, missing, value=-1),
    )


# ---------------------------------------------------------------- matrix products


def document_scores(S: Tensor, starts: Tensor) -> Tensor:
    """(b, docs): the maximum over the rows of each document, which are adjacent (ICLR Sec. 5)."""
    first, last = starts[:-1], starts[1:] - 1
    best = S.index_select(1, first)
    for further in range(1, int((last - first).max()) + 1):
        torch.maximum(best, S.index_select(1, torch.minimum(first + further, last)), out=best)
    return best


def top_of_scores(S: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns, ties in any order.

    A top-k reads its input several times. The k groups of columns with the greatest maxima contain
    the k best columns. So all columns are read once, for the maxima of the groups.
    """
    b, n = S.shape
    groups = n // _GROUP
    whole = groups * _GROUP
    if 4 * k > groups:  # the groups would contain most columns
        found = S.topk(k, 1)
        return found.values, found.indices
    grouped = S[:, :whole].view(b, groups, _GROUP)
    chosen = grouped.amax(2).topk(k, 1).indices  # (b, k)
    inside = grouped.gather(1, chosen[:, :, None].expand(-1, -1, _GROUP)).view(b, k * _GROUP)
    D, slot = torch.cat([inside, S[:, whole:]], 1).topk(k, 1)
    group = chosen.gather(1, (slot // _GROUP).clamp_(max=k - 1))
    in_tail = slot >= k * _GROUP
    return D, torch.where(in_tail, slot - k * _GROUP + whole, group * _GROUP + slot % _GROUP)


def _batch(room: int) -> int:
    """The greatest power of two that is no more than `room` and `BATCH`; at least 1."""
    return min(BATCH, 1 << max(0, room.bit_length() - 1))


class Engine(Protocol):
    """How one device finds the best of a chunk."""

    dtype: torch.dtype
    """Type of the chunks on the device."""
    scale: Tensor | None
    """(nq, 1) powers of two: `best` returns a query's inner products times its factor. None: the
    inner products themselves."""

    def queries(self, xq: npt.NDArray[np.float32]) -> Tensor:
        """The queries as `best` takes them, on the device."""

    def batch(self, rows: int, k: int) -> int:
        """How many queries to pass to `best` at once, if each finds k of `rows` rows: a power of
        two, at most `BATCH`."""

    def prepare(self, x: Tensor) -> Tensor:
        """A chunk as `best` takes it; called once for all batches."""

    def best(
        self, q: Tensor, x: Tensor, starts: Tensor | None, k: int, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The k best rows in order, or the k best documents if `starts` (docs + 1,) divides the
        rows into documents. Results that score no more than `floor` (b,) need not be correct."""


class TorchEngine:
    """A matrix product and torch's top-k.

    Stored halves are multiplied without conversion, with accumulation in 32 bits. A query is the
    sum of two halves next to each other, which together hold 22 of its bits. Its scores are those
    of 32-bit queries, at twice the cost of rounded queries. Rounding to one half would change a
    score by 1e-4 of its size, which is more than the distance between neighbours in a ranking.
    """

    def __init__(self, device: torch.device, stored: torch.dtype) -> None:
        self.device = device
        self.dtype = stored
        self.scale: Tensor | None = None

    def queries(self, xq: npt.NDArray[np.float32]) -> Tensor:
        whole = torch.from_numpy(xq)
        if self.dtype == torch.float32:
            return whole.to(self.device)
        # a power of two changes no bit, and keeps the lower halves of small queries normal numbers;
        # each query has its own, so that its scores do not depend on the other queries
        _, exponents = np.frexp(np.abs(xq).max(1, initial=0, keepdims=True))
        scale = np.ldexp(np.float32(1), np.minimum(13 - exponents, 126))
        self.scale = torch.from_numpy(scale).to(self.device)
        halves = torch.empty((len(xq), 2, xq.shape[1]), dtype=torch.half, device=self.device)
        parts = (torch.split(each, BATCH) for each in (halves, whole, self.scale))
        # all at once would take more than three times the memory of the result
        for pair, some, factor in zip(*parts, strict=True):
            q = some.to(self.device) * factor
            pair[:, 0] = q.half()
            pair[:, 1] = q - pair[:, 0].float()
        return halves.flatten(1)  # (b, 2 d)

    def batch(self, rows: int, k: int) -> int:
        return _batch(_SCORE_BYTES[self.device.type] // (4 * rows))

    def prepare(self, x: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            return x
        pair = torch.cat([x, x], 1)
        # torch multiplies halves into 32 bits on GPUs only
        return pair if self.device.type == "cuda" else pair.float()

    def scores(self, q: Tensor, x: Tensor) -> Tensor:
        """(b, n) float32 of what `queries` and `prepare` returned."""
        if x.dtype == torch.float32:
            return q.float() @ x.T
        return torch.mm(q, x.T, out_dtype=torch.float32)

    def best(
        self, q: Tensor, x: Tensor, starts: Tensor | None, k: int, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        S = self.scores(q, x)
        if starts is not None:
            S = document_scores(S, starts)
        k = min(k, S.shape[1])
        D, I = top_of_scores(S, min(k + 1, S.shape[1]))  # noqa: E741
        return settle_ties(D, I, k, floor, lambda some: S[some])


def _best_by_rows(
    search: Callable[[int], tuple[Tensor, Tensor]],
    scores_of: Callable[[Tensor], Tensor],
    num_rows: int,
    starts: Tensor | None,
    k: int,
    floor: Tensor,
) -> tuple[Tensor, Tensor]:
    """`Engine.best` by a library that only finds the best rows.

    The best `k * segments` rows contain the best k documents: k other documents rank before a
    document without a row among them.
    """
    counts = None if starts is None else starts.diff()
    wanted = k if counts is None else k * int(counts.max())
    wanted = min(wanted, num_rows)
    D, I = search(min(wanted + 1, num_rows))  # noqa: E741
    D, I = settle_ties(D, I, wanted, floor, scores_of)  # noqa: E741
    if counts is None:
        return D, I
    doc_of_row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return best_documents(D, doc_of_row[I], k)


class FaissEngine:
    """faiss on the CPU: a blocked product whose scores never leave the cache."""

    dtype = torch.float32
    scale: Tensor | None = None

    def queries(self, xq: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(xq)

    def batch(self, rows: int, k: int) -> int:
        return _batch(_RESULT_BYTES // (64 * (k + 1)))  # found, sorted, merged

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def best(
        self, q: Tensor, x: Tensor, starts: Tensor | None, k: int, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        import faiss

        def search(wanted: int) -> tuple[Tensor, Tensor]:
            D, I = faiss.knn(q.numpy(), x.numpy(), wanted, faiss.METRIC_INNER_PRODUCT)  # noqa: E741
            return torch.from_numpy(D), torch.from_numpy(I)

        return _best_by_rows(search, lambda some: q[some] @ x.T, len(x), starts, k, floor)


_ENGINES: dict[str, Callable[[torch.device, torch.dtype], Engine]] = {
    "faiss": lambda device, stored: FaissEngine(),
    "torch": TorchEngine,
}


def engine_of(name: str, device: torch.device, stored: torch.dtype) -> Engine:
    """`faiss` (CPU) or `torch` (any device); `auto` is the fastest on the device."""
    if name == "auto":
        name = "faiss" if device.type == "cpu" else "torch"
    return _ENGINES[name](device, stored)
