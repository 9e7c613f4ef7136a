"""`ance bm25-negatives`: negatives from BM25's ranking, for the warm-up (ICLR Sec. 5)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ance_cli.call import Call, SkippedLines
from ance_cli.config import Bm25Config, DeviceConfig
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.journal import Journal
from ance_cli.formats.manifest import Plan
from ance_cli.formats.summary import Clock, Summary, planned, summary_of
from ance_cli.formats.trec import in_trec_order, read_run
from ance_cli.mining.candidate_filters import open_candidate_filters, teacher_inputs
from ance_cli.mining.drawing import (
    MiningData,
    all_texts,
    audit_of,
    check_scores,
    read_mining_data,
    recipe_of,
    write_negatives,
)
from ance_cli.mining.pool import Pool, RankedLists
from ance_cli.mining.sampling import RANDOM, parse_mix
from ance_cli.mining.sources import BM25, search_bm25


def bm25_negatives(
    dataset: Dataset,
    output: Path,
    config: Bm25Config = Bm25Config(),
    compute: DeviceConfig = DeviceConfig(),
    run: Path | None = None,
    earlier: Path | None = None,
    with_text: bool = False,
    call: Call = Call(),
) -> Summary:
    """Negatives of every pair of the split, drawn from BM25's top `depth`, or from a given run.

    `compute` says where a teacher runs.
    """
    source = "run" if run else BM25
    shares = parse_mix(config.mix if not run or config.mix != BM25 else "run", (source, RANDOM))
    recipe = recipe_of(config, shares, 0)
    check_scores(recipe, [RANDOM] if RANDOM in shares else [], f"draw from {source} alone")
    shaped_by = {
        **asdict(config),
        "with_text": with_text,
        **({"dtype": compute.dtype} if config.teacher else {}),
    }
    del shaped_by["teacher"]  # among the inputs, by content
    inputs = {
        "dataset": dataset.fingerprint("corpus", "queries", "qrels"),
        **({"run": hash_file(run)} if run else {}),
        **({"earlier": hash_file(earlier)} if earlier else {}),
        **teacher_inputs(config),
    }
    reads = [*dataset.files, run, earlier, config.teacher]
    plan = Plan("negatives", output, shaped_by, inputs, {"corpus": str(dataset.corpus)}, reads)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    def work(journal: Journal) -> Summary:
        clock = Clock()
        with clock("read"):
            data = read_mining_data(dataset, config, call)
        lists = {}
        if config.negatives and source in shares:
            with clock("search"):
                if run:
                    found = _from_run(run, data, config.depth, call.skipped)
                else:
                    found = search_bm25(dataset, data.queries, config, config.depth, call)
            lists[source] = RankedLists.of(found)
        candidate_filters = open_candidate_filters(
            config, compute, dataset, data.queries, journal, call
        )
        if candidate_filters.dtype:
            plan.shaped_by["dtype"] = candidate_filters.dtype
        pool = Pool(
            list(data.queries), data.positives, data.duplicates, lists,
            has_answer=candidate_filters.has_answer, teacher=candidate_filters.teacher,
            scope=data.scope,
        )  # fmt: skip
        audit = audit_of(config, shares, earlier)
        texts = all_texts(dataset, call.skipped) if with_text else None
        return write_negatives(plan, pool, recipe, audit, texts, clock, call.reporter)

    with lease.of_output(output), plan.journal(call.force, call.reporter.say) as journal:
        return work(journal)


def _from_run(path: Path, data: MiningData, depth: int, skipped: SkippedLines | None) -> Candidates:
    position = data.duplicates.position
    run = read_run(path, skipped, known_docs=position)
    if not run.keys() & data.queries.keys():
        raise BadInput(
            f"{path}: ranks nothing for any of the {len(data.queries)} queries of the split",
            hint="the run should be of the queries that --split names",
        )
    docs = np.full((len(data.queries), depth), -1, np.int32)
    scores = np.full((len(data.queries), depth), -np.inf, np.float32)
    for row, query_id in enumerate(data.queries):
        hits = in_trec_order(run.get(query_id, {}))[:depth]
        for rank, (doc_id, score) in enumerate(hits):
            docs[row, rank], scores[row, rank] = position[doc_id], score
    return Candidates(list(data.queries), docs, scores, {})
