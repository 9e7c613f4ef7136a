"""Exact search against bare faiss and against the machine's matrix products, in one run.

    python benchmarks/search.py [--device cuda] [--rows 100000] [--dim 384] [--queries 1000]
    python benchmarks/search.py --memory

Bare faiss searches float32 vectors that are in memory already; ance searches float16 embeddings in
a folder, whose blocks it reads, checks and converts. The runs alternate and the best of each
counts, so that the ratios hold if other programs disturb both. On a GPU the search is compared
with the GPU's rate and with the CPU's results. `--memory` prints how the resident memory of a
search grows with the corpus, in a process for each size. `--cpu-time` counts processor time instead
of the clock's: for one thread on a machine that has other work.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ance_cli.formats.embeddings import BLOCK_DOCS, Embeddings, EmbeddingsWriter
from ance_cli.formats.plan import Plan
from ance_cli.retrieval.exact import exact_top_docs, exact_top_k, positive_scores

_SIZE = 2048


def synthetic(folder: Path, docs: int, dim: int, max_segments: int = 1) -> Embeddings:
    """Published float16 embeddings of normal vectors, 1 to `max_segments` rows a document."""
    generator = np.random.default_rng(docs)
    plan = Plan("embeddings", folder, {}, {"tower": "", "corpus": ""})
    offsets = np.zeros(docs + 1, np.int64)
    np.cumsum(generator.integers(1, max_segments + 1, docs), out=offsets[1:])
    writer = EmbeddingsWriter.begin(plan.open_partial(), offsets, dim, "float16", BLOCK_DOCS)
    for block in range(writer.num_blocks):
        places = writer.docs_of(block)
        rows = int(offsets[places.stop] - offsets[places.start])
        writer.write_block(block, generator.standard_normal((rows, dim), np.float32))
    plan.publish_folder(writer.finish([f"d{place}" for place in range(docs)]), {})
    return Embeddings(folder)


def best_of(
    repeats: int, clock: Callable[[], float], **works: Callable[[], object]
) -> dict[str, float]:
    """Seconds of each, the best of several alternating runs."""
    seconds = dict.fromkeys(works, np.inf)
    for _ in range(repeats):
        for name, work in works.items():
            started = clock()
            work()
            seconds[name] = min(seconds[name], clock() - started)
    return seconds


def product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One square matrix product of `2 * _SIZE**3` FLOP."""
    a, b = (torch.randn(_SIZE, _SIZE, dtype=dtype, device=device) for _ in range(2))
    return lambda: (a @ b).sum().item()


def on_cpu(options: argparse.Namespace, folder: Path, console: Console) -> None:
    import faiss

    embeddings = synthetic(folder / "first", options.rows, options.dim)
    pooled = synthetic(folder / "max", options.rows * 2 // 5, options.dim, 4)
    xq = np.random.default_rng(1).standard_normal((options.queries, options.dim), np.float32)

    def bare(of: Embeddings, k: int) -> Callable[[], object]:
        flat = faiss.IndexFlatIP(of.dim)
        flat.add(of.vectors.astype(np.float32))
        return lambda: flat.search(xq, k)

    depth, segments = options.depth, pooled.max_segments
    seconds = best_of(
        options.repeats,
        time.process_time if options.cpu_time else time.perf_counter,
        ceiling=product(torch.device("cpu"), torch.float32),
        bare=bare(embeddings, depth),
        ours=lambda: exact_top_docs(xq, embeddings, depth),
        bare_rows=bare(pooled, depth * segments),
        ours_max=lambda: exact_top_docs(xq, pooled, depth),
    )
    rate = 2 * _SIZE**3 / seconds["ceiling"]
    table = Table("search", "seconds", "ratio", "of the ceiling", box=None)
    for name, work, of, base in (
        (f"faiss IndexFlatIP, top {depth}", "bare", embeddings, "bare"),
        (f"ance, {depth} documents", "ours", embeddings, "bare"),
        (f"faiss IndexFlatIP, top {depth * segments} rows", "bare_rows", pooled, "bare_rows"),
        (f"ance, {depth} documents by MaxP", "ours_max", pooled, "bare_rows"),
    ):
        flops = 2 * len(xq) * of.num_rows * of.dim
        table.add_row(
            name,
            f"{seconds[work]:.3f}",
            f"{seconds[work] / seconds[base]:.2f}",
            f"{flops / seconds[work] / rate:.0%}",
        )
    console.print(
        f"{len(xq):,} queries x {embeddings.num_rows:,} rows (MaxP {pooled.num_rows:,}) x "
        f"{options.dim}, {torch.get_num_threads()} threads; matrix products: {rate / 1e9:.0f} "
        f"GFLOP/s; load {os.getloadavg()[0]:.1f}"
    )
    console.print(table)
    positives = {str(query): [f"d{query % options.rows}"] for query in range(len(xq))}
    started = time.process_time()
    positive_scores(xq, list(positives), positives, embeddings)
    console.print(
        f"exact scores of {len(xq):,} positives: {time.process_time() - started:.3f} s of one core"
    )


def on_gpu(options: argparse.Namespace, folder: Path, console: Console) -> None:
    device = torch.device(options.device, 0)
    embeddings = synthetic(folder / "first", options.rows, options.dim)
    xq = np.random.default_rng(1).standard_normal((options.queries, options.dim), np.float32)
    sample, depth = xq[:64], options.depth
    _, expected = exact_top_k(sample, embeddings, depth)
    seconds = best_of(
        options.repeats,
        time.perf_counter,
        ceiling=product(device, torch.float16),
        torch=lambda: exact_top_docs(xq, embeddings, depth, [device], engine="torch"),
    )
    rate = 2 * _SIZE**3 / seconds["ceiling"]
    flops = 4 * len(xq) * embeddings.num_rows * embeddings.dim  # a query is two halves
    _, found = exact_top_k(sample, embeddings, depth, [device])
    table = Table("engine", "seconds", "of the ceiling", "same as on the CPU", box=None)
    table.add_row(
        "torch",
        f"{seconds['torch']:.3f}",
        f"{flops / seconds['torch'] / rate:.0%}",
        f"{(found == expected).mean():.2%}",
    )
    console.print(
        f"{len(xq):,} queries x {embeddings.num_rows:,} rows x {options.dim} on "
        f"{torch.cuda.get_device_name(device)}; float16 products: {rate / 1e12:.0f} TFLOP/s"
    )
    console.print(table)


def resident(what: str) -> float:
    """MiB of this process, `VmRSS` or `VmHWM`."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def memory_of(options: argparse.Namespace) -> None:
    """In the child: search and say what it took."""
    import faiss  # noqa: F401  (its own memory is not the search's)

    embeddings = Embeddings(options.child)
    xq = np.random.default_rng(1).standard_normal((options.queries, embeddings.dim), np.float32)
    before = resident("VmRSS")
    exact_top_docs(xq, embeddings, options.depth)
    print(f"{before:.0f} {resident('VmHWM'):.0f}")


def memory(options: argparse.Namespace, folder: Path, console: Console) -> None:
    table = Table("rows", "on disk", "before", "peak", box=None)
    for rows in options.sizes:
        embeddings = synthetic(folder / str(rows), rows, 64)
        child = [sys.executable, __file__, "--child", str(embeddings.folder)]
        child += ["--queries", str(options.queries), "--depth", str(options.depth)]
        found = subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()
        on_disk = embeddings.vectors.nbytes / 2**20
        table.add_row(f"{rows:,}", f"{on_disk:.0f} MiB", *(f"{part} MiB" for part in found))
    console.print(f"{options.queries:,} queries, depth {options.depth}, 64 dimensions")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return memory_of(options)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        work = memory if options.memory else on_cpu if options.device == "cpu" else on_gpu
        work(options, Path(folder), console)


if __name__ == "__main__":
    main()
