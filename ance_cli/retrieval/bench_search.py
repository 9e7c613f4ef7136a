"""`ance bench-search`: the online latency and the recall of each way to search a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import BenchSearchConfig, ComputeConfig
from ance_cli.errors import Mismatch
from ance_cli.formats import lease
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource
from ance_cli.retrieval.exact import Positions
from ance_cli.retrieval.latency import Latency, measure, percentiles


def bench_search(
    sources: list[Path],
    checkpoint: Checkpoint,
    queries: dict[str, str],
    corpus: Path | None = None,
    config: BenchSearchConfig = BenchSearchConfig(),
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> Summary:
    """Time the first `config.trials` queries on each of `sources`, embeddings and index folders.

    All times are in milliseconds. If one of the sources contains embeddings, the recall of each
    source is the share of the exact top `config.depth` that it finds.
    """
    opened = [source_at(path) for path in sources]
    for source in opened:
        source.check(checkpoint, hash_file(corpus) if corpus else None)
    texts = list(queries.values())[: config.trials]
    rows: list[dict[str, Any]] = []
    found: list[Positions] = []
    device = ""
    for source in opened:
        with lease.reading(source.path):
            retriever = DenseRetriever(checkpoint, source, compute, None)
            retriever.place(config.depth, call.reporter)  # no query is timed while it is copied
            device = f"{retriever.device.type}, {retriever.dtype}"
            with call.reporter.task(str(source.path), len(texts), "query") as bar:
                latency = measure(retriever, texts, config.depth, bar)
        rows.append(_row(source, latency))
        found.append(latency.found)
    _add_recall(rows, found, opened)
    return {
        "kind": "latency", "queries": len(texts), "depth": config.depth, "device": device,
        "sources": rows,
    }  # fmt: skip


def _row(source: VectorSource, latency: Latency) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "searched": _factory(source) if source.kind == "index" else _exactly(source),
        "encode": percentiles(latency.encode),
        "search": percentiles(latency.search),
        "total": percentiles(latency.encode + latency.search),
        "batched": round(latency.batched, 3),
    }


def _add_recall(
    rows: list[dict[str, Any]], found: list[Positions], sources: list[VectorSource]
) -> None:
    """Add each row's recall against the first exact search, if there is one; vectors that were
    rounded come after all others."""
    from ance_cli.retrieval.recall import recall

    searched = [nth for nth, source in enumerate(sources) if source.kind == "embeddings"]
    if not searched:
        return
    exact = found[min(searched, key=lambda nth: sources[nth].rounded_to is not None)]
    for row, own in zip(rows, found, strict=True):
        row["recall"] = round(recall(own, exact), 4)


def source_at(path: Path) -> VectorSource:
    """The vectors in a folder of either kind, as its manifest says."""
    try:
        read_manifest(path, "embeddings")
    except Mismatch:
        read_manifest(path, "index")
        return VectorSource(path, "index")
    return VectorSource(path, "embeddings")


def _exactly(source: VectorSource) -> str:
    return f"exactly, {source.rounded_to}" if source.rounded_to else "exactly"


def _factory(source: VectorSource) -> str:
    return str(read_manifest(source.path, source.kind)["shaped_by"]["factory"])
