"""What `bm25-negatives` and `mine` have in common: from candidates to the negatives file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.formats import atomic
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.dataset import (
    Dataset,
    positives_of,
    read_corpus,
    read_qrels,
    read_queries,
)
from ance_cli.formats.jsonl import STDIO, Skipped, read_records
from ance_cli.formats.manifest import Plan
from ance_cli.formats.triples import Texts
from ance_cli.negatives.audit import Audit
from ance_cli.negatives.filtering import Copies
from ance_cli.negatives.selection import select_negatives
from ance_cli.progress import Reporter
from ance_cli.stages.summary import Summary


def beside(output: Path, ending: str) -> Path:
    """The name of a companion of a negatives file: `ann.jsonl` -> `ann` + ending."""
    stem = output.name
    for suffix in (".gz", ".zst", ".jsonl"):
        stem = stem.removesuffix(suffix)
    return output.with_name(stem + ending)


def read_earlier(path: Path | None) -> dict[tuple[str, str], set[str]] | None:
    """The negatives of an earlier file, to measure the overlap with."""
    if path is None:
        return None
    return {
        (str(record.get("query_id")), str(record.get("positive_id"))): set(
            record.get("negative_ids", ())
        )
        for _, record in read_records(path)
    }


@dataclass(frozen=True)
class Sides:
    """What negatives are drawn for and from."""

    queries: dict[str, str]
    """query_id -> text, of the queries that have a positive"""
    positives: dict[str, list[str]]
    copies: Copies


def read_sides(
    dataset: Dataset, min_rel: int, depth: int, skipped: Skipped | None, reporter: Reporter
) -> Sides:
    """Queries, labels and corpus, checked against each other.

    Warns where `depth` candidates are a large part of the corpus: then they are hardly hard.
    """
    queries = read_queries(dataset.need("queries"), skipped)
    copies = Copies(read_corpus(dataset.corpus, skipped))
    qrels = read_qrels(dataset.need("qrels"), queries, copies.position, skipped)
    positives = positives_of(qrels, min_rel)
    if depth * 10 > len(copies.doc_ids):
        reporter.warn(
            f"--depth {depth} is over a tenth of the {len(copies.doc_ids)} documents: "
            "most of these negatives are not hard ones"
        )
    return Sides({name: queries[name] for name in positives}, positives, copies)


def write_negatives(
    plan: Plan,
    candidates: Candidates,
    sides: Sides,
    source: str,
    shares: dict[str, float],
    checkpoint_step: int,
    earlier: Path | None,
    texts: Texts | None,
    extra_stats: dict[str, Any],
    reporter: Reporter,
) -> Summary:
    """Select, write and audit; the plan's `shaped_by` names sampler, count and seed."""
    audit = Audit(wanted=plan.shaped_by["negatives"], earlier=read_earlier(earlier))
    stats: dict[str, Any] = {}
    with plan.text_file(stats) as handle:
        for pair in select_negatives(
            candidates,
            sides.positives,
            sides.copies,
            source,
            shares,
            plan.shaped_by["sampler"],
            plan.shaped_by["negatives"],
            plan.shaped_by["seed"],
            checkpoint_step,
            audit,
        ):
            handle.write(pair.to_line(texts))
        stats |= {"checkpoint_step": checkpoint_step, **extra_stats, "audit": audit.summary()}
    if plan.output != STDIO:
        atomic.write_bytes(
            beside(plan.output, ".audit.json"),
            orjson.dumps(stats["audit"], option=orjson.OPT_INDENT_2),
        )
    if audit.short_pairs:
        reporter.warn(
            f"{audit.short_pairs} of {audit.pairs} pairs have fewer than {audit.wanted} negatives "
            f"({audit.missing} missing in all): their candidate lists were too short"
        )
    return {
        "output": str(plan.output),
        "kind": plan.kind,
        "up_to_date": False,
        "fingerprint": plan.fingerprint,
        **stats,
    }


def all_texts(dataset: Dataset, skipped: Skipped | None) -> Texts:
    """Texts of every query and document, for `--with-text`; they are held in memory."""
    passages = read_corpus(dataset.corpus, skipped)
    return Texts(
        read_queries(dataset.need("queries"), skipped),
        {passage.doc_id: passage.joined(" ") for passage in passages},
    )
