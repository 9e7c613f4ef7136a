"""Exact search in the processes of a Ray cluster, with the results of one machine.

The corpus is searched in parts, each of which is a task. Ray restarts a task whose worker is lost,
alone or with its node, so a loss costs no more than the parts that the worker was searching.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ance_cli.errors import hold_signals
from ance_cli.models.devices import set_threads
from ance_cli.models.ray_cluster import Cluster, check_shared, first_done, result_of

if TYPE_CHECKING:
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.progress import Reporter
    from ance_cli.retrieval.exact import Found, Scores

_PARTS = 4
"""Parts of the corpus per worker: with fewer parts a lost worker costs more, with more parts there
is more to merge."""


def search_in_cluster(
    cluster: Cluster, xq: Scores, embeddings: Embeddings, depth: int, reporter: Reporter
) -> Found:
    """The results of `exact.exact_top_docs`, searched by a cluster; the depth is at
    most the number of documents."""
    import ray

    from ance_cli.retrieval.exact import merged

    search = ray.remote(_search).options(**cluster.reserved)
    with hold_signals():
        shared = ray.put(xq)
    depth = min(depth, embeddings.num_docs)
    folder = os.path.abspath(embeddings.folder)
    first_rows = embeddings.first_rows()
    running = {
        search.remote(shared, folder, depth, part, cluster.device, cluster.threads): part
        for part in _parts(embeddings, cluster)
    }
    best: Found | None = None
    with reporter.task("searching", embeddings.num_rows, "row") as bar:
        while running:
            done = first_done(list(running))
            part = running.pop(done)
            found = result_of(done)
            best = found if best is None else merged(best, found)
            bar.advance(int(first_rows[part.stop] - first_rows[part.start]))
    assert best is not None
    return best


def _parts(embeddings: Embeddings, cluster: Cluster) -> list[range]:
    """The blocks of each task: whole chunks, so that each chunk is searched as in one search."""
    import torch

    from ance_cli.retrieval.chunks import chunks_of

    # a GPU receives vectors as they are stored
    halves = cluster.device != "cpu" and embeddings.vectors.dtype.name == "float16"
    chunks = chunks_of(embeddings, torch.float16 if halves else torch.float32)
    num_parts = min(len(chunks), _PARTS * cluster.num_workers)
    cuts = [len(chunks) * nth // num_parts for nth in range(num_parts + 1)]
    return [range(chunks[a].start, chunks[b - 1].stop) for a, b in pairwise(cuts)]


def _search(xq: Scores, folder: str, depth: int, blocks: range, device: str, threads: int) -> Found:
    """In a worker of Ray: search some blocks of the corpus."""
    set_threads(threads)
    check_shared(folder)
    import numpy as np
    import torch

    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.retrieval.exact import exact_top_docs

    xq = np.array(xq)  # Ray's own array is read-only, and torch warns about that
    return exact_top_docs(
        xq, Embeddings(Path(folder)), depth, [torch.device(device)], blocks=blocks
    )
