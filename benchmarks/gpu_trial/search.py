"""Part 3: the seconds of exact search and what they are spent on, and whether its rankings are the
CPU's, also for ties."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from ance_cli.config.sets import OutputDtype
from ance_cli.formats.embeddings import BLOCK_DOCS, Embeddings, EmbeddingsWriter
from ance_cli.formats.plan import Plan
from ance_cli.retrieval import chunks
from ance_cli.retrieval.exact import Found, exact_top_docs, exact_top_k
from benchmarks.gpu_trial.agreement import Floats, same_ranking
from benchmarks.gpu_trial.parts import COMPARED_SEARCHES
from benchmarks.gpu_trial.profiling import profiled
from benchmarks.gpu_trial.trial import Trial
from benchmarks.search import synthetic

Ints = npt.NDArray[np.int64]

_SEGMENTS = 4
_SAMPLE = 64
"""Queries whose rankings over the large corpus are compared with the CPU's."""
_PRODUCTS = ("gemm", "cutlass", "nvjet", "xmma", "wgmma")
"""In the names of the kernels that multiply matrices."""
_MS_MARCO = (500_000, 8_841_823)


def run(trial: Trial) -> None:
    sizes = trial.sizes
    for what in COMPARED_SEARCHES:
        name = f"{what}: ranked as on the CPU"
        with trial.arm(name):
            trial.record(name, _compare(trial, what))
    twice = "a document twice: both copies next to each other, the first one before"
    with trial.arm(twice):
        trial.record(twice, _copies_are_neighbours(trial))
    embeddings = synthetic(trial.scratch("large"), sizes.rows, sizes.dim)
    xq = _normal(1, sizes.queries[0], sizes.dim)
    _rates(trial, xq, embeddings)
    name = "large corpus: ranked as on the CPU"
    with trial.arm(name):
        few = xq[:_SAMPLE]
        found = exact_top_k(few, embeddings, sizes.depth, [trial.device], engine="torch")
        trial.record(name, same_ranking(found, exact_top_k(few, embeddings, sizes.depth)))
    name = "repeated: identical bytes"
    with trial.arm(name):
        few = xq[: sizes.queries[1]]
        runs = {
            b"".join(part.tobytes() for part in _search(trial, few, embeddings, sizes.depth))
            for _ in range(sizes.repeats)
        }
        trial.record(name, len(runs) == 1, times=sizes.repeats)
    name = f"{sizes.queries[0]:,} queries, MaxP"
    with trial.arm(name):
        docs = 2 * sizes.rows // (1 + _SEGMENTS)
        pooled = synthetic(trial.scratch("pooled"), docs, sizes.dim, _SEGMENTS)
        seconds = _seconds(lambda: _search(trial, xq, pooled, sizes.depth))
        trial.record(name, seconds, rows=pooled.num_rows)


def _search(trial: Trial, xq: Floats, embeddings: Embeddings, depth: int) -> Found:
    return exact_top_docs(xq, embeddings, depth, [trial.device], engine="torch")


def _normal(seed: int, rows: int, dim: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, dim), np.float32)


def _seconds(work: Callable[[], object]) -> float:
    """Of the second of two calls: the first one reads the disk and loads kernels."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return seconds


# ---------------------------------------------------------------- rates


def _rates(trial: Trial, xq: Floats, embeddings: Embeddings) -> None:
    sizes = trial.sizes
    first = f"{sizes.queries[0]:,} queries"
    with trial.arm(first, "matrix rate", "500,000 queries x 8.84M rows, extrapolated"):
        seconds = _seconds(lambda: _search(trial, xq, embeddings, sizes.depth))
        trial.record(first, seconds)
        halves = 2 if trial.cuda else 1  # a GPU multiplies a query as the sum of two halves
        flops = 2 * halves * len(xq) * embeddings.num_rows * embeddings.dim
        trial.record("matrix rate", flops / seconds / 1e12)
        queries, rows = _MS_MARCO
        times = queries / len(xq) * rows / embeddings.num_rows
        trial.record("500,000 queries x 8.84M rows, extrapolated", seconds * times)
    with trial.arm("waiting for the next chunk"):
        trial.record("waiting for the next chunk", _waiting(trial, xq, embeddings))
    if trial.cuda:
        with trial.arm("matrix products", "other kernels", "GPU busy", "waits for the GPU"):
            profile = profiled(lambda: _search(trial, xq, embeddings, sizes.depth))
            products = profile.milliseconds(*_PRODUCTS)
            every = sum(ms for ms, _ in profile.kernels.values())
            trial.record("matrix products", products / 1e3, kernels=profile.top())
            trial.record("other kernels", (every - products) / 1e3)
            trial.record("GPU busy", profile.busy_percent)
            trial.record("waits for the GPU", profile.waits, wait_ms=profile.wait_ms)
    for count in sizes.queries[1:]:
        name = f"{count:,} queries"
        with trial.arm(name):
            few = xq[:count]
            trial.record(name, _seconds(lambda: _search(trial, few, embeddings, sizes.depth)))  # noqa: B023
    name = f"{first}, depth {sizes.deeper:,}"
    with trial.arm(name):
        trial.record(name, _seconds(lambda: _search(trial, xq, embeddings, sizes.deeper)))


def _waiting(trial: Trial, xq: Floats, embeddings: Embeddings) -> float:
    """Seconds in which a search waits for its reader."""
    waited = 0.0
    read_ahead = chunks.read_ahead

    def timed(*arguments: Any, **more: Any) -> Generator[chunks.Chunk]:
        nonlocal waited
        reading = read_ahead(*arguments, **more)
        try:
            while True:
                started = time.perf_counter()
                chunk = next(reading, None)
                waited += time.perf_counter() - started
                if chunk is None:
                    return
                yield chunk
        finally:
            reading.close()

    with mock.patch.object(chunks, "read_ahead", timed):
        _search(trial, xq, embeddings, trial.sizes.depth)
    return waited


# ---------------------------------------------------------------- rankings


def _compare(trial: Trial, what: str) -> bool:
    """Whether the device ranks as the CPU's default engine does."""
    rows, dim, depth = trial.sizes.compared_rows, trial.sizes.dim, trial.sizes.depth
    vectors, counts = _normal(2, rows, dim), np.ones(rows, np.int64)
    dtype: OutputDtype = "float16"
    queries = _SAMPLE
    if what == "float32":
        dtype = "float32"
    elif what == "every row twice":
        vectors = np.repeat(vectors[: rows // 2], 2, axis=0)
        depth += 1 - depth % 2  # the cut divides two copies
    elif what == "MaxP":
        counts = np.random.default_rng(3).integers(1, _SEGMENTS + 1, rows)
        counts = counts[: int(np.searchsorted(np.cumsum(counts), rows, side="right"))]
        vectors = vectors[: int(counts.sum())]
    elif what == "3 queries":
        queries = 3
    elif what == "depth beyond the rows":
        vectors, counts = vectors[: depth // 2], counts[: depth // 2]
    folder = trial.scratch(what.replace(" ", "-"))
    embeddings = published(folder, vectors, counts, dtype)
    xq = _normal(4, queries, dim)
    expected = exact_top_docs(xq, embeddings, depth)
    return same_ranking(_search(trial, xq, embeddings, depth), expected)


def published(folder: Path, vectors: Floats, counts: Ints, dtype: OutputDtype) -> Embeddings:
    """Embeddings of these vectors, with so many rows for each document."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    plan = Plan("embeddings", folder, {}, {"tower": "", "corpus": ""})
    writer = EmbeddingsWriter.begin(
        plan.open_partial(), offsets, vectors.shape[1], dtype, BLOCK_DOCS
    )
    for block in range(writer.num_blocks):
        docs = writer.docs_of(block)
        writer.write_block(block, vectors[offsets[docs.start] : offsets[docs.stop]])
    plan.publish_folder(writer.finish([f"d{doc}" for doc in range(len(counts))]), {})
    return Embeddings(folder)


def _copies_are_neighbours(trial: Trial) -> bool:
    """In a corpus with every row twice, each place of an even number and the one after it hold the
    two copies of a row, in corpus order and with one score; a cut divides a pair by position."""
    sizes = trial.sizes
    folder = trial.scratch("pairs")
    half = _normal(5, sizes.compared_rows // 2, sizes.dim)
    vectors = np.repeat(half, 2, axis=0)
    embeddings = published(folder, vectors, np.ones(len(vectors), np.int64), "float16")
    depth = 2 * (sizes.depth // 2) + 1
    D, I = _search(trial, _normal(6, _SAMPLE, sizes.dim), embeddings, depth)  # noqa: E741
    first, second = I[:, :-1:2], I[:, 1::2]
    pairs = (first % 2 == 0) & (second == first + 1) & (D[:, :-1:2] == D[:, 1::2])
    return bool(pairs.all() and (I[:, -1] % 2 == 0).all())
