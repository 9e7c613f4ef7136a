"""`ance bm25-negatives`: negatives from BM25's ranking, for the warm-up (ICLR Sec. 5)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ance_cli.config import Bm25Config
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, Skipped
from ance_cli.formats.manifest import Plan
from ance_cli.formats.trec import in_trec_order, read_run
from ance_cli.negatives.sampling import RANDOM, parse_mix
from ance_cli.progress import Reporter, Silent
from ance_cli.stages.negatives import Sides, all_texts, read_sides, write_negatives
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

    def work() -> Summary:
        sides = read_sides(dataset, config.min_rel, config.depth, skipped, reporter)
        if run:
            candidates = _from_run(run, sides, config.depth, skipped)
        else:
            candidates = _from_bm25(dataset, sides, config, threads, skipped, reporter)
        texts = all_texts(dataset, skipped) if with_text else None
        return write_negatives(
            plan, candidates, sides, source, shares, 0, earlier, texts, {}, reporter
        )

    if output == STDIO:
        return work()
    with lease.hold(lease.lease_name(output), str(output)):
        return work()


def _from_bm25(
    dataset: Dataset,
    sides: Sides,
    config: Bm25Config,
    threads: int,
    skipped: Skipped | None,
    reporter: Reporter,
) -> Candidates:
    from ance_cli.retrieval.bm25 import open_bm25

    reporter.say(f"BM25 ({config.engine}) over {dataset.corpus}")
    bm25 = open_bm25(config.engine, dataset.corpus, config.k1, config.b, threads, skipped)
    with reporter.task("BM25", len(sides.queries), "query") as bar:
        docs, scores = bm25.search(list(sides.queries.values()), config.depth, bar.advance)
    return Candidates(list(sides.queries), docs, scores, {})


def _from_run(path: Path, sides: Sides, depth: int, skipped: Skipped | None) -> Candidates:
    run = read_run(path, skipped)
    position = sides.copies.position
    docs = np.full((len(sides.queries), depth), -1, np.int32)
    scores = np.full((len(sides.queries), depth), -np.inf, np.float32)
    for row, query_id in enumerate(sides.queries):
        hits = in_trec_order(run.get(query_id, {}))[:depth]
        for rank, (doc_id, score) in enumerate(hits):
            if doc_id not in position:
                raise BadInput(
                    f"{path}: document {doc_id!r} is not in the corpus",
                    hint="the run should come from the corpus that --data names",
                )
            docs[row, rank], scores[row, rank] = position[doc_id], score
    return Candidates(list(sides.queries), docs, scores, {})
