"""BM25's ranking of a corpus for the queries of a split, searched or read from a cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ance_cli.call import Call
from ance_cli.config import DrawConfig
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates, read_candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import cache_dir, hash_file
from ance_cli.formats.plan import Plan
from ance_cli.mining.audit import BM25_TOP
from ance_cli.mining.mining_data import MiningData


def search_bm25(
    dataset: Dataset, queries: Mapping[str, str], config: DrawConfig, depth: int, call: Call
) -> Candidates:
    """BM25's ranking of the corpus for each query."""
    from ance_cli.retrieval.bm25 import open_bm25

    call.reporter.say(f"BM25 ({config.engine}) over {dataset.corpus}")
    bm25 = open_bm25(config.engine, dataset.corpus, config.k1, config.b, call)
    with call.reporter.task("BM25", len(queries), "query") as bar:
        docs, scores = bm25.search(list(queries.values()), depth, bar.advance)
    return Candidates(list(queries), docs, scores, {})


def cached_bm25(
    dataset: Dataset, data: MiningData, config: DrawConfig, folder: Path | None, call: Call
) -> Candidates:
    """BM25's ranking, searched once and kept as candidates in `folder` (None: the cache folder),
    under its fingerprint. If two processes need the same ranking, the second waits for the first.

    Whatever `--depth` says, the ranking is at least as deep as the audit needs.
    """
    depth = max(config.depth, BM25_TOP)
    plan = Plan(
        "candidates",
        Path(),
        {name: getattr(config, name) for name in ("engine", "k1", "b", "min_rel")}
        | {"depth": depth},
        {
            "corpus": hash_file(dataset.corpus),
            "queries": hash_file(dataset.need("queries")),
            "qrels": hash_file(dataset.need("qrels")),
        },
    )
    plan.output = (folder or cache_dir() / "bm25-rankings") / plan.fingerprint
    if plan.cached() is None:
        with lease.hold_in_turn(lease.lease_name(plan.output), str(plan.output), call.reporter.say):
            if plan.cached(call.reporter.warn) is None:
                found = search_bm25(dataset, data.queries, config, depth, call)
                plan.publish_folder(found.write(plan.open_partial(force=True)), {})
    return read_candidates(plan.output, data.num_docs)
