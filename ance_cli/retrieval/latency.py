"""How long a query takes online, encoding and search: one query at a time, and all at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.progress import Bar, Silent
from ance_cli.retrieval.dense import DenseRetriever

WARM_UP = 10
"""Queries that are answered first and not timed: libraries choose their kernels in these."""

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Latency:
    """Milliseconds: `encode` and `search` (queries,) of each query by itself; `batched`, the time
    per query if all are answered at once."""

    encode: npt.NDArray[np.float64]
    search: npt.NDArray[np.float64]
    batched: float
    found: npt.NDArray[np.int32]
    """(queries, depth) document positions, -1 = none."""


def percentiles(milliseconds: npt.NDArray[np.float64]) -> dict[str, float]:
    """p50, p95 and p99, linear between the values."""
    values = np.percentile(milliseconds, PERCENTILES).round(3).tolist()
    return {f"p{at}": value for at, value in zip(PERCENTILES, values, strict=True)}


def measure(retriever: DenseRetriever, texts: Sequence[str], depth: int, bar: Bar) -> Latency:
    """Answer the queries one by one, and then all of them at once. Advances `bar` by one per
    query."""
    silent = Silent()
    for text in texts[:WARM_UP]:
        retriever.search(retriever.encode_queries([text], silent), depth, silent)
    times = []
    for text in texts:
        began = time.perf_counter()
        xq = retriever.encode_queries([text], silent)
        encoded = time.perf_counter()
        retriever.search(xq, depth, silent)
        times.append((encoded - began, time.perf_counter() - encoded))
        bar.advance()
    began = time.perf_counter()
    _, found = retriever.search(retriever.encode_queries(texts, silent), depth, silent)
    batched = 1000 * (time.perf_counter() - began) / len(texts)
    encode, search = 1000 * np.array(times).T
    return Latency(encode, search, batched, found)
