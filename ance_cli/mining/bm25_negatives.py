"""`ance bm25-negatives`: negatives from BM25's ranking, for the warm-up (ICLR Sec. 5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ance_cli.call import Call, SkippedLines
from ance_cli.config import Bm25Config, DeviceConfig, shaped_by
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Clock, Summary
from ance_cli.formats.trec import in_trec_order, read_run
from ance_cli.mining.bm25_rankings import search_bm25
from ance_cli.mining.given import given_lists, given_negatives
from ance_cli.mining.mining_data import MiningData, all_texts, read_mining_data
from ance_cli.mining.mix import BM25, GIVEN, RANDOM, RUN, Mix, parse_mix
from ance_cli.mining.negatives_output import (
    NegativesFiles,
    new_audit,
    nothing_to_write,
    write_negatives,
)
from ance_cli.mining.pool import Pool, RankedLists
from ance_cli.mining.rules import check_scores
from ance_cli.mining.selection import Draw
from ance_cli.mining.text_filters import open_candidate_filters


def bm25_negatives(
    dataset: Dataset,
    files: NegativesFiles,
    config: Bm25Config = Bm25Config(),
    device: DeviceConfig = DeviceConfig(),
    run: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Draw negatives for every pair of the split from BM25's top `config.depth`, or from a TREC
    run; a teacher runs on `device`."""
    mix = _checked_mix(config, run)
    plan = _plan(dataset, files, mix, config, device, run)
    if summary := nothing_to_write(plan, call):
        return summary
    with (
        lease.of_output(plan.output),
        plan.journal(call.force, call.reporter.say) as journal,
    ):
        clock = Clock()
        with clock("read"):
            data = read_mining_data(dataset, config, call)
        lists = {}
        if config.negatives and mix.shares.keys() - {RANDOM}:
            with clock("search"):
                lists = _ranked(dataset, data, mix, config, run, call)
        filters = open_candidate_filters(config, device, dataset, data.queries, journal, call)
        if filters.dtype:
            plan.shaped_by["dtype"] = filters.dtype
        pool = Pool(
            list(data.queries), data.positives, data.duplicates, lists,
            has_answer=filters.has_answer, teacher=filters.teacher, scope=data.scope,
        )  # fmt: skip
        audit = new_audit(config, mix, files)
        texts = all_texts(dataset, call.skipped) if files.with_text else None
        draw = Draw(config, mix.shares)
        summary = write_negatives(plan, pool, draw, audit, texts, clock, call.reporter)
        filters.say_cut(call.reporter)
        return summary


def _checked_mix(config: Bm25Config, run: Path | None) -> Mix:
    """The mix: BM25, or the run in place of BM25, and `random`."""
    source = RUN if run else BM25
    text = RUN if run and config.mix == BM25 else config.mix
    mix = Mix(parse_mix(text, (source, GIVEN, RANDOM)))
    unscored = [each for each in (GIVEN, RANDOM) if each in mix.shares]
    check_scores(config, unscored, f"draw only from {source}")
    return mix


def _plan(
    dataset: Dataset,
    files: NegativesFiles,
    mix: Mix,
    config: Bm25Config,
    device: DeviceConfig,
    run: Path | None,
) -> Plan:
    return Plan(
        "negatives",
        files.output,
        {
            **shaped_by(config, Bm25Config),
            "with_text": files.with_text,
            **({"dtype": device.dtype} if config.teacher else {}),
        },
        {
            "dataset": dataset.fingerprint("corpus", "queries", "qrels"),
            **({"run": hash_file(run)} if run else {}),
            **({"given": hash_file(given_negatives(dataset))} if GIVEN in mix.shares else {}),
            **files.inputs(config),
        },
        {"corpus": str(dataset.corpus)},
        [*dataset.files, run, files.earlier, config.teacher],
    )


def _ranked(
    dataset: Dataset, data: MiningData, mix: Mix, config: Bm25Config, run: Path | None, call: Call
) -> dict[str, RankedLists]:
    """The sources of the mix that have lists, with these."""
    lists = {}
    if RUN in mix.shares and run:
        lists[RUN] = RankedLists.of(_from_run(run, data, config.depth, call.skipped))
    if BM25 in mix.shares:
        found = search_bm25(dataset, data.queries, config, config.depth, call)
        lists[BM25] = RankedLists.of(found)
    if GIVEN in mix.shares:
        lists[GIVEN] = given_lists(dataset, data, call.skipped)
    return lists


def _from_run(path: Path, data: MiningData, depth: int, skipped: SkippedLines | None) -> Candidates:
    position = data.duplicates.position
    run = read_run(path, skipped, known_docs=position)
    if not run.keys() & data.queries.keys():
        raise BadInput(
            f"{path}: has none of the {len(data.queries)} queries of the split",
            hint="name the split of the run's queries with --split",
        )
    docs = np.full((len(data.queries), depth), -1, np.int32)
    scores = np.full((len(data.queries), depth), -np.inf, np.float32)
    for row, query_id in enumerate(data.queries):
        hits = in_trec_order(run.get(query_id, {}))[:depth]
        for rank, (doc_id, score) in enumerate(hits):
            docs[row, rank], scores[row, rank] = position[doc_id], score
    return Candidates(list(data.queries), docs, scores, {})
