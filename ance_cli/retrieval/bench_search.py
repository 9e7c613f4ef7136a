"""`ance bench-search`: the online latency of each way to search a corpus, beside its recall."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import ComputeConfig
from ance_cli.errors import Mismatch, UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource


def bench_search(
    sources: list[Path],
    checkpoint: Checkpoint,
    queries: dict[str, str],
    corpus: Path | None = None,
    depth: int = 100,
    trials: int = 200,
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> Summary:
    """Time the first `trials` queries on each of `sources`, embeddings and index folders.

    All times are in milliseconds. Where embeddings are among the sources, each one's recall is the
    share of their exact top `depth` that it finds.
    """
    if trials < 1:
        raise UsageProblem("--trials must be at least 1")
    if depth < 1:
        raise UsageProblem("--depth must be at least 1")
    opened = [_source_at(path) for path in sources]
    for source in opened:
        source.check(checkpoint, hash_file(corpus) if corpus else None)

    from ance_cli.retrieval.latency import measure, percentiles
    from ance_cli.retrieval.recall import recall

    texts = list(queries.values())[:trials]
    rows: list[dict[str, Any]] = []
    measured = []
    device = ""
    with ExitStack() as stack:
        for source in opened:
            stack.enter_context(lease.reading(source.path))
            retriever = DenseRetriever(checkpoint, source, compute, None)
            device = f"{retriever.device.type}, {retriever.dtype}"
            with call.reporter.task(str(source.path), len(texts), "query") as bar:
                latency = measure(retriever, texts, depth, bar)
            measured.append(latency)
            rows.append(
                {
                    "source": str(source.path),
                    "searched": "exactly" if source.kind == "embeddings" else _factory(source),
                    "encode": percentiles(latency.encode),
                    "search": percentiles(latency.search),
                    "total": percentiles(latency.encode + latency.search),
                    "batched": round(latency.batched, 3),
                }
            )
    exact = next(
        (m.found for m, s in zip(measured, opened, strict=True) if s.kind == "embeddings"), None
    )
    if exact is not None:
        for row, latency in zip(rows, measured, strict=True):
            row["recall"] = round(recall(latency.found, exact), 4)
    return {
        "kind": "latency", "queries": len(texts), "depth": depth, "device": device,
        "sources": rows,
    }  # fmt: skip


def _source_at(path: Path) -> VectorSource:
    """The vectors in a folder, whichever kind its manifest names."""
    try:
        read_manifest(path, "embeddings")
    except Mismatch:
        read_manifest(path, "index")
        return VectorSource(path, "index")
    return VectorSource(path, "embeddings")


def _factory(source: VectorSource) -> str:
    return str(read_manifest(source.path, source.kind)["shaped_by"]["factory"])
