"""`ance bm25-negatives`: negatives from BM25's ranking, for the warm-up (ICLR Sec. 5)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ance_cli.config import Bm25Config
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import (
    Dataset,
    positives_of,
    read_corpus,
    read_qrels,
    read_queries,
)
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, Skipped
from ance_cli.formats.manifest import Plan
from ance_cli.formats.trec import in_trec_order, read_run
from ance_cli.negatives.filtering import Copies
from ance_cli.negatives.sampling import RANDOM, parse_mix
from ance_cli.progress import Reporter, Silent
from ance_cli.stages.negatives import all_texts, warn_of_depth, write_negatives
from ance_cli.stages.summary import Summary, planned, summary_of


def bm25_negatives(
    dataset: Dataset,
    output: Path,
    config: Bm25Config = Bm25Config(),
    run: Path | None = None,
    earlier: Path | None = None,
    with_text: bool = False,
    threads: int = 0,
    force: bool = False,
    dry_run: bool = False,
    skipped: Skipped | None = None,
    reporter: Reporter = Silent(),
) -> Summary:
    """Negatives of every pair of the split, drawn from BM25's top `depth`, or from a given run."""
    source = "run" if run else "bm25"
    shares = parse_mix(config.mix if not run or config.mix != "bm25" else "run", (source, RANDOM))
    shaped_by = {**asdict(config), "with_text": with_text}
    inputs = {
        "dataset": dataset.fingerprint("corpus", "queries", "qrels"),
        **({"run": hash_file(run)} if run else {}),
        **({"earlier": hash_file(earlier)} if earlier else {}),
    }
    plan = Plan("negatives", output, shaped_by, inputs, {"corpus": str(dataset.corpus)})
    if manifest := plan.published(force):
        return summary_of(manifest, output, up_to_date=True)
    if dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    queries = read_queries(dataset.need("queries"), skipped)
    copies = Copies(read_corpus(dataset.corpus, skipped))
    qrels = read_qrels(dataset.need("qrels"), queries, copies.position, skipped)
    positives = positives_of(qrels, config.min_rel)
    warn_of_depth(config.depth, len(copies.doc_ids), reporter)
    if run:
        candidates = _from_run(run, list(positives), copies, config.depth, skipped)
    else:
        candidates = _from_bm25(
            dataset, queries, list(positives), config, threads, skipped, reporter
        )

    def write() -> Summary:
        texts = all_texts(dataset, skipped) if with_text else None
        return write_negatives(
            plan, candidates, positives, copies, source, shares, 0, earlier, texts, {}, reporter
        )

    if output == STDIO:
        return write()
    with lease.hold(lease.lease_name(output), str(output)):
        return write()


def _from_bm25(
    dataset: Dataset,
    queries: dict[str, str],
    query_ids: list[str],
    config: Bm25Config,
    threads: int,
    skipped: Skipped | None,
    reporter: Reporter,
) -> Candidates:
    from ance_cli.retrieval.bm25 import open_bm25

    reporter.say(f"indexing {dataset.corpus} with {config.engine}")
    bm25 = open_bm25(config.engine, dataset.corpus, config.k1, config.b, threads, skipped)
    with reporter.task("BM25", len(query_ids), "query") as bar:
        docs, scores = bm25.search([queries[name] for name in query_ids], config.depth, bar.advance)
    return Candidates(query_ids, docs, scores, {})


def _from_run(
    path: Path, query_ids: list[str], copies: Copies, depth: int, skipped: Skipped | None
) -> Candidates:
    run = read_run(path, skipped)
    docs = np.full((len(query_ids), depth), -1, np.int32)
    scores = np.full((len(query_ids), depth), -np.inf, np.float32)
    for row, query_id in enumerate(query_ids):
        hits = in_trec_order(run.get(query_id, {}))[:depth]
        for rank, (doc_id, score) in enumerate(hits):
            if doc_id not in copies.position:
                raise _unknown_document(path, doc_id)
            docs[row, rank], scores[row, rank] = copies.position[doc_id], score
    return Candidates(query_ids, docs, scores, {})


def _unknown_document(path: Path, doc_id: str) -> Exception:
    from ance_cli.errors import BadInput

    return BadInput(
        f"{path}: document {doc_id!r} is not in the corpus",
        hint="the run should come from the corpus that --data names",
    )
