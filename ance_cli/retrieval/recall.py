"""How much of the exact ranking an index finds."""

from __future__ import annotations

import numpy as np

from ance_cli.formats.embeddings import Embeddings
from ance_cli.retrieval.exact import Positions, exact_top_docs
from ance_cli.retrieval.faiss_index import index_top_docs

RECALL_DEPTHS = (10, 100)


def recall(found: Positions, exact: Positions) -> float:
    """Mean over the queries of the share of `exact` (nq, k) document positions that are in `found`
    (nq, k); -1 = none. Both hold at least one document per query."""
    shares = [
        len(np.intersect1d(ours[ours >= 0], theirs)) / np.count_nonzero(theirs >= 0)
        for ours, theirs in zip(found, exact, strict=True)
    ]
    return float(np.mean(shares))


def check_recall(
    index: object, embeddings: Embeddings, num_queries: int, seed: int
) -> dict[str, float | int]:
    """Recall@10 and @100 (at most the documents) of an index over these embeddings, with
    `num_queries` of their rows, drawn without replacement, as queries."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    count = min(num_queries, embeddings.num_rows)
    rows = np.sort(generator.choice(embeddings.num_rows, count, replace=False))
    xq = embeddings.rows(rows)
    depth = min(max(RECALL_DEPTHS), embeddings.num_docs)
    _, exact = exact_top_docs(xq, embeddings, depth)
    _, found = index_top_docs(index, xq, depth, embeddings.max_segments, embeddings.doc_of_row())
    depths = sorted({min(at, depth) for at in RECALL_DEPTHS})
    measured = {f"recall@{at}": round(recall(found[:, :at], exact[:, :at]), 4) for at in depths}
    return {"recall_queries": count, **measured}
