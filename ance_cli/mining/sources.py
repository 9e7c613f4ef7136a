"""Where candidates come from, beside the search of `mine`: BM25, an earlier model, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ance_cli.call import Call
from ance_cli.config import DrawConfig
from ance_cli.errors import Mismatch
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates, read_candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.hashing import cache_dir, hash_file
from ance_cli.formats.manifest import Plan, read_manifest
from ance_cli.mining.audit import BM25_TOP
from ance_cli.mining.pool import RankedLists
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    import torch

ANN, BM25, PREVIOUS, LOOKAHEAD = "ann", "bm25", "previous", "lookahead"


def search_bm25(
    dataset: Dataset,
    queries: Mapping[str, str],
    config: DrawConfig,
    depth: int,
    call: Call,
) -> Candidates:
    """BM25's ranking of the corpus for each query."""
    from ance_cli.retrieval.bm25 import open_bm25

    call.reporter.say(f"BM25 ({config.engine}) over {dataset.corpus}")
    bm25 = open_bm25(config.engine, dataset.corpus, config.k1, config.b, call)
    with call.reporter.task("BM25", len(queries), "query") as bar:
        docs, scores = bm25.search(list(queries.values()), depth, bar.advance)
    return Candidates(list(queries), docs, scores, {})


def kept_bm25(
    dataset: Dataset,
    queries: Mapping[str, str],
    config: DrawConfig,
    kept_in: Path | None,
    num_docs: int,
    call: Call,
) -> Candidates:
    """BM25's ranking of a corpus of `num_docs`, made once and kept as candidates, in `kept_in` or
    the cache folder. Of two processes that need the same one the second waits for the first.

    It is at least as deep as the audit looks, whatever `--depth`; its name is its fingerprint.
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
    plan.output = (kept_in or cache_dir() / "bm25-rankings") / plan.fingerprint
    if plan.published() is None:
        with lease.hold_in_turn(lease.lease_name(plan.output), str(plan.output), call.reporter.say):
            if plan.published() is None:
                found = search_bm25(dataset, queries, config, depth, call)
                plan.publish_folder(found.write(plan.open_partial(force=True)), {})
    return read_candidates(plan.output, num_docs)


def cut(candidates: Candidates, depth: int) -> Candidates:
    """The best-ranked `depth` of each list."""
    return Candidates(
        candidates.query_ids,
        candidates.docs[:, :depth],
        candidates.scores[:, :depth],
        candidates.positive_scores,
    )


def check_previous(folder: Path, corpus_hash: str) -> str:
    """The fingerprint of earlier candidates; `Mismatch` where they are of another corpus."""
    manifest = read_manifest(folder, "candidates")
    if manifest["inputs"].get("corpus") != corpus_hash:
        raise Mismatch(
            f"{folder}: its candidates are of another corpus than the dataset's",
            hint="name candidates that were mined from this corpus with --previous",
        )
    return str(manifest["fingerprint"])


def neighbours(
    positives: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
    depth: int,
    device: torch.device,
    reporter: Reporter,
) -> RankedLists:
    """For each positive passage the passages nearest to it (ANCE-Tele's lookahead negatives).

    MaxP: the similarity of two documents is the maximum over their rows.
    """
    from ance_cli.retrieval.exact import exact_top_docs, in_order, pool_to_documents

    position = {doc_id: place for place, doc_id in enumerate(embeddings.ids)}
    doc_ids = sorted({name for names in positives.values() for name in names}, key=position.get)  # type: ignore[arg-type]
    places = np.array([position[doc_id] for doc_id in doc_ids])
    first, last = embeddings.doc_offsets[places], embeddings.doc_offsets[places + 1]
    rows = np.concatenate([np.arange(start, stop) for start, stop in zip(first, last, strict=True)])
    xq = embeddings.vectors[rows].astype(np.float32)
    with reporter.task("searching neighbours", embeddings.num_rows, "row") as bar:
        D, found = exact_top_docs(xq, embeddings, depth, [device], bar.advance)
    row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    if len(rows) == len(doc_ids):
        return RankedLists(found, None, row_of, by_positive=True)
    itself = np.arange(embeddings.num_docs, dtype=np.int32)
    docs = np.empty((len(doc_ids), depth), np.int32)
    ends = np.cumsum(last - first)
    for nth, (start, end) in enumerate(zip(ends - (last - first), ends, strict=True)):
        best = in_order(D[start:end].reshape(1, -1), found[start:end].reshape(1, -1))
        docs[nth] = pool_to_documents(*best, itself, depth)[1][0]
    return RankedLists(docs, None, row_of, by_positive=True)
