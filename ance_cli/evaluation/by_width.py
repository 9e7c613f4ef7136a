"""What is lost if vectors are cut to their first dimensions, for `ance bench-search --widths`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import BenchSearchConfig, ComputeConfig
from ance_cli.config.retrieval import widths_of
from ance_cli.errors import UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset, read_qrels
from ance_cli.formats.hashing import hash_file
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.bench_search import source_at
from ance_cli.retrieval.dense import DenseRetriever
from ance_cli.retrieval.search import hits_of


def measure_widths(
    sources: list[Path],
    checkpoint: Checkpoint,
    dataset: Dataset,
    queries: dict[str, str],
    config: BenchSearchConfig,
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> list[dict[str, Any]]:
    """One row for each of `config.widths`, the full width first: the means of the measures over the
    judged queries, and the share of each in that of the full width, None if that is 0.

    One of `sources` must contain embeddings. They are read once, and searched exactly. `queries`
    are the judged ones, query_id -> text.
    """
    from ance_cli.evaluation.measures import evaluate, parse_measures

    assert config.widths is not None
    measures = parse_measures(config.measures)
    widths = widths_of("--widths", config.widths, checkpoint.dim)
    embeddings = [source for source in map(source_at, sources) if source.kind == "embeddings"]
    if len(embeddings) != 1:
        raise UsageProblem(
            f"--widths cuts the vectors of one folder of embeddings, and {len(embeddings)} are "
            "named",
            hint="name one folder that ance encode wrote",
        )
    [source] = embeddings
    source.check(checkpoint, hash_file(dataset.corpus))
    qrels = read_qrels(dataset.need("qrels"), skipped=call.skipped)
    with lease.reading(source.path):
        retriever = DenseRetriever(checkpoint, source, compute)
        xq = retriever.encode_queries(list(queries.values()), call.reporter)
        found = retriever.search_by_width(xq, config.depth, widths, call.reporter)
    rows: list[dict[str, Any]] = []
    for width, (scores, docs) in zip(widths, found, strict=True):
        hits = hits_of(queries, docs, scores, retriever.doc_ids)
        run = {query_id: dict(listed) for query_id, listed in hits.items()}
        means = evaluate(run, qrels, measures).means
        full = rows[0]["measures"] if rows else means
        shares = {name: mean / full[name] if full[name] else None for name, mean in means.items()}
        rows.append({"width": width, "measures": means, "shares": shares})
    return rows
