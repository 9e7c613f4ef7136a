"""Exact top-k over memory-mapped embeddings, which are read once, in bounded memory.

Every function ranks by inner product and sorts ties by ascending position, also at the cut.

Shapes: xq (nq, d) float32 queries, D (nq, k) float32 scores, I (nq, k) int32 positions, -1 = none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ance_cli.formats.embeddings import Embeddings
from ance_cli.retrieval.query_batches import QueryBatches

if TYPE_CHECKING:
    import torch

    from ance_cli.retrieval.chunks import Chunk
    from ance_cli.retrieval.top_k import Engine

Scores = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]
Found = tuple[Scores, Positions]
_Part = tuple[Scores, Scores, Positions]
"""(xq, D, I): queries, and where their results are written."""

_GROUP_BYTES = 4 << 30
_PAIR_BYTES = 64 << 20


# ---------------------------------------------------------------- searching


def exact_top_k(
    xq: Scores,
    embeddings: Embeddings,
    k: int,
    devices: Sequence[torch.device] = (),
    on_rows: Callable[[int], None] | None = None,
    engine: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """The `k` rows of the embeddings with the greatest inner product with each query.

    If there are fewer rows the rest is -1. See `exact_top_docs` for the other arguments.
    """
    scan = _Scan(embeddings, _devices(devices), engine, QueryBatches(say), pooled=False)
    return _found(scan, [(xq, *_room(len(xq), k))], on_rows)[0]


def exact_top_docs(
    xq: Scores,
    embeddings: Embeddings,
    depth: int,
    devices: Sequence[torch.device] = (),
    on_rows: Callable[[int], None] | None = None,
    out: Found | None = None,
    engine: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """The `depth` documents with the greatest score for each query, MaxP: the maximum of the inner
    products over a document's rows (ICLR Sec. 5).

    The queries are divided among `devices` (default: the CPU). Each device searches every chunk of
    the corpus; a damaged block raises `BadInput`. `on_rows` is called with the number of rows
    searched since the last call; the numbers add up to the corpus. The results are written to
    `out`, if given, for instance memory-mapped arrays. `engine` is a name in `top_k.engine_of`.
    If there are fewer documents than `depth`, the rest is -1. If memory runs out, batches of
    queries are halved; `say` is called once with a sentence about that.

    Memory: two chunks (`chunks.CHUNK_BYTES`), a batch of scores, the queries and their results.

    On one device, a slice of the queries that begins and ends at multiples of `top_k.BATCH` (or
    ends with the last query) gets the bits that a search of all queries gives it, if the device is
    of the same kind and has as many threads, and its memory does not run out.
    """
    scan = _Scan(embeddings, _devices(devices), engine, QueryBatches(say), _is_pooled(embeddings))
    return _found(scan, [(xq, *(out or _room(len(xq), depth)))], on_rows)[0]


def search_docs(
    xq: Scores,
    embeddings: Embeddings,
    out: Found,
    devices: Sequence[torch.device] = (),
    engine: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[int]:
    """`exact_top_docs` step by step: yields the number of rows searched since the last step. `out`
    is complete after the last step."""
    scan = _Scan(embeddings, _devices(devices), engine, QueryBatches(say), _is_pooled(embeddings))
    yield from _search(scan, [(xq, *out)])


def exact_top_docs_by_width(
    xq: Scores,
    embeddings: Embeddings,
    depth: int,
    widths: Sequence[int],
    is_cosine: bool,
    devices: Sequence[torch.device] = (),
    on_rows: Callable[[int], None] | None = None,
    engine: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> list[Found]:
    """What `exact_top_docs` finds if all vectors are cut to each of `widths`, from one reading of
    the corpus. For cosine, cut vectors are scaled to length one again."""
    import torch

    from ance_cli.models.matryoshka import cut

    batches, pooled = QueryBatches(say), _is_pooled(embeddings)
    scan = _Scan(embeddings, _devices(devices), engine, batches, pooled, is_cosine)
    queries = [cut(torch.from_numpy(xq), width, is_cosine).numpy() for width in widths]
    return _found(scan, [(each, *_room(len(xq), depth)) for each in queries], on_rows)


@dataclass(frozen=True)
class _Scan:
    """What is searched, and by what."""

    embeddings: Embeddings
    devices: list[torch.device]
    engine: str
    batches: QueryBatches
    pooled: bool
    """Whether rows are pooled to documents."""
    is_cosine: bool | None = None
    """Of vectors that are cut to the width of the queries; None: they have that width."""


def _devices(devices: Sequence[torch.device]) -> list[torch.device]:
    import torch

    return list(devices) or [torch.device("cpu")]


def _is_pooled(embeddings: Embeddings) -> bool:
    """Whether documents have several rows."""
    return embeddings.max_segments > 1


def _room(nq: int, k: int) -> Found:
    return np.empty((nq, k), np.float32), np.empty((nq, k), np.int32)


def _found(
    scan: _Scan, parts: Sequence[_Part], on_rows: Callable[[int], None] | None
) -> list[Found]:
    """D and I of each part, filled."""
    for rows in _search(scan, parts):
        if on_rows:
            on_rows(rows)
    return [(D, found) for _, D, found in parts]


def _search(scan: _Scan, parts: Sequence[_Part]) -> Iterator[int]:
    """Fill D and I of each part; yields the number of rows searched since the last step. The parts
    are the same queries in one or several widths, to the same depth."""
    from ance_cli.retrieval.top_k import BATCH

    nq = len(parts[0][0])
    for _, D, I in parts:  # noqa: E741
        D[:], I[:] = -np.inf, -1
    # Which is cheaper to read several times? Each chunk of the corpus reads the queries and their
    # lists, nq * (4 d + 8 k) bytes in memory; each group of queries reads the corpus, 2 n d bytes
    # on disk. 500k queries to depth 200 at d = 768 are 2.3 GB against 13.5 GB for 8.8M rows. So the
    # corpus is read once if the queries fit in memory. More queries (10M to depth 1,000: 110 GB,
    # read for each of 100 chunks) are searched in groups of gigabytes: paging would cost as much
    # for each chunk as reading the corpus once more.
    row_bytes = sum(4 * xq.shape[1] + 8 * D.shape[1] for xq, D, _ in parts)
    size = max(1, _GROUP_BYTES // row_bytes)
    size = len(scan.devices) * (size - size % BATCH or size)
    groups = [slice(start, min(start + size, nq)) for start in range(0, nq, size)]
    reported = 0
    for nth, group in enumerate(groups):
        here = [(np.ascontiguousarray(xq[group]), D[group], found[group]) for xq, D, found in parts]
        for rows in _search_group(scan, here):
            done = (nth * scan.embeddings.num_rows + rows) // len(groups)
            yield done - reported
            reported = done


def _search_group(scan: _Scan, parts: Sequence[_Part]) -> Iterator[int]:
    """Fill D and I of each part, reading the corpus once; yields how many rows have been
    searched."""
    from ance_cli.retrieval.chunks import read_ahead

    by_part = [_shares_of(scan, *part) for part in parts]
    on = [share.device for share in by_part[0]]
    chunks = read_ahead(scan.embeddings, on, by_part[0][0].engine.dtype)
    with closing(chunks), ThreadPoolExecutor(len(on), "search") as threads:
        for chunk in chunks:
            # one device is searched in this thread, which has the caller's number of threads
            run = map if len(on) == 1 else threads.map
            for shares in by_part:
                for _ in run(_Share.add, shares, repeat(chunk), chunk.on):
                    pass
            yield chunk.first_row + len(chunk)
    for share in chain.from_iterable(by_part):
        share.finish()


def _shares_of(
    scan: _Scan,
    xq: Scores,
    D: Scores,
    I: Positions,  # noqa: E741
) -> list[_Share]:
    """The queries of each device that gets any."""
    import torch

    from ance_cli.retrieval.top_k import engine_of

    devices = scan.devices
    stored = torch.float16 if scan.embeddings.vectors.dtype == np.float16 else torch.float32
    cuts = [len(xq) * nth // len(devices) for nth in range(len(devices) + 1)]
    return [
        _Share(engine_of(scan.engine, device, stored), device, xq[a:b], D[a:b], I[a:b], scan)
        for device, (a, b) in zip(devices, pairwise(cuts), strict=True)
        if a < b
    ]


class _Share:
    """The queries of one device, and their best results so far."""

    def __init__(
        self,
        engine: Engine,
        device: torch.device,
        xq: Scores,
        D: Scores,
        I: Positions,  # noqa: E741
        scan: _Scan,
    ) -> None:
        import torch

        self.engine = engine
        self.device = device
        self._pooled, self._is_cosine = scan.pooled, scan.is_cosine
        self._batches = scan.batches
        self._width = xq.shape[1]
        self._q = engine.queries(xq)
        self._filled = torch.from_numpy(D), torch.from_numpy(I)
        # on a CPU these are the arrays themselves
        self._D, self._I = (part.to(device) for part in self._filled)
        self._is_empty = True

    def add(self, chunk: Chunk, x: torch.Tensor) -> None:
        """Search a chunk, whose vectors on the device are `x`, and merge the results."""
        import torch

        from ance_cli.models.matryoshka import cut

        k = self._D.shape[1]
        starts = chunk.starts.to(self.device) if self._pooled else None
        first = chunk.first_doc if self._pooled else chunk.first_row
        segments = 1 if starts is None else int(starts.diff().max())
        batch = self.engine.batch(len(x), k * segments)

        def search(part: slice) -> None:
            D, I = self._D[part], self._I[part]  # noqa: E741
            D_new, I_new = self.engine.best(self._q[part], x, starts, k, D[:, -1])
            I_new = torch.where(I_new < 0, I_new, I_new + first).int()
            if self._is_empty:  # no results to merge with; the new ones are in order
                D[:, : D_new.shape[1]], I[:, : I_new.shape[1]] = D_new, I_new
                return
            # earlier results come first and the sort is stable, so ties stay in corpus order
            both = torch.cat([D, D_new], 1).sort(dim=1, descending=True, stable=True)
            places = torch.cat([I, I_new], 1).gather(1, both.indices[:, :k])
            D.copy_(both.values[:, :k])  # nothing more is allocated: both change, or neither
            I.copy_(places)

        with torch.inference_mode():
            if self._is_cosine is not None:
                x = cut(x, self._width, self._is_cosine).contiguous()
            x = self.engine.prepare(x)
            self._batches.search(len(self._q), batch, search)
        self._is_empty = False
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def finish(self) -> None:
        """Copy the results to D and I."""
        if self.engine.scale is not None:
            self._D /= self.engine.scale
        for filled, found in zip(self._filled, (self._D, self._I), strict=True):
            filled.copy_(found)


# ---------------------------------------------------------------- lists


def in_order(D: Scores, I: npt.NDArray[Any]) -> tuple[Scores, npt.NDArray[Any]]:  # noqa: E741
    """Each row by descending score, ties by ascending position; empty places (-1) last."""
    empty = I < 0
    order = np.lexsort((np.where(empty, np.iinfo(np.int64).max, I), np.where(empty, np.inf, -D)))
    return np.take_along_axis(D, order, 1), np.take_along_axis(I, order, 1)


def pool_to_documents(
    D: Scores,
    I: npt.NDArray[Any],  # noqa: E741
    doc_of_row: npt.NDArray[np.int32],
    depth: int,
) -> Found:
    """MaxP: a document's score is the maximum over its rows (ICLR Sec. 5). Keep `depth` of them.

    Rows arrive best first, so a document's first row is its best.
    """
    import torch

    from ance_cli.retrieval.top_k import best_documents

    docs = np.where(I >= 0, doc_of_row[I], -1)
    best = best_documents(torch.from_numpy(D), torch.from_numpy(docs), depth)
    scores, found = in_order(*(part.numpy() for part in best))
    return scores, found.astype(np.int32)


# ---------------------------------------------------------------- single scores


class DocumentVectors(Protocol):
    """`Embeddings`, or vectors in memory."""

    @property
    def doc_offsets(self) -> npt.NDArray[np.int64]:
        """(documents + 1,): document i owns the rows `doc_offsets[i]:doc_offsets[i + 1]`."""

    def rows(self, positions: npt.NDArray[np.integer[Any]]) -> Scores:
        """(positions, d) the vectors of some rows."""


def pair_scores(
    xq: Scores,
    query_of: npt.NDArray[np.integer[Any]],
    doc_of: npt.NDArray[np.integer[Any]],
    documents: DocumentVectors,
) -> Scores:
    """(pairs,) exact scores of queries `query_of` (rows of xq) and documents `doc_of`, MaxP.

    The bits of a score do not depend on other pairs. Rows are read in corpus order.
    """
    scores = np.empty(len(doc_of), np.float32)
    in_corpus = np.argsort(doc_of, kind="stable")
    offsets = documents.doc_offsets
    segments = int(np.diff(offsets).max(initial=1))
    at_once = max(1, _PAIR_BYTES // (8 * xq.shape[1] * segments))
    for start in range(0, len(in_corpus), at_once):
        pairs = in_corpus[start : start + at_once]
        first = offsets[doc_of[pairs]]
        counts = offsets[doc_of[pairs] + 1] - first
        begins = np.cumsum(counts) - counts
        rows = np.repeat(first - begins, counts) + np.arange(counts.sum())
        vectors = documents.rows(rows)  # (rows, d)
        queries = xq[np.repeat(query_of[pairs], counts)]  # (rows, d)
        scores[pairs] = np.maximum.reduceat(np.einsum("rd,rd->r", vectors, queries), begins)
    return scores


def rescored(
    xq: Scores, docs: npt.NDArray[np.int32], documents: DocumentVectors, depth: int
) -> tuple[Scores, npt.NDArray[np.int32]]:
    """(nq, depth) exact scores and positions of the best of `docs`, (nq, candidates) positions with
    -1 = none."""
    query_of, place = np.nonzero(docs >= 0)
    scores = np.full(docs.shape, -np.inf, np.float32)
    scores[query_of, place] = pair_scores(xq, query_of, docs[query_of, place], documents)
    scores, docs = in_order(scores, docs)
    return scores[:, :depth], docs[:, :depth]


def positive_scores(
    xq: Scores,
    query_ids: Sequence[str],
    positives: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
) -> dict[str, dict[str, float]]:
    """Exact score of each positive: the maximum over its rows of the inner product."""
    position = {doc_id: place for place, doc_id in enumerate(embeddings.ids)}
    listed = [positives.get(query_id, ()) for query_id in query_ids]
    docs = np.array([position[doc_id] for names in listed for doc_id in names], np.int64)
    query_of = np.repeat(np.arange(len(listed)), [len(names) for names in listed])
    scores = iter(pair_scores(xq, query_of, docs, embeddings).tolist())
    return {
        query_id: {doc_id: round(next(scores), 6) for doc_id in names}
        for query_id, names in zip(query_ids, listed, strict=True)
    }
