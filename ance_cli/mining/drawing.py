"""What `bm25-negatives` and `mine` have in common: from candidates to the negatives file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import DrawConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, positives_of, read_corpus, read_qrels, read_queries
from ance_cli.formats.jsonl import STDIO, read_records
from ance_cli.formats.manifest import Plan
from ance_cli.formats.merged import read_shares
from ance_cli.formats.negatives_file import Texts, audit_name, parse_pair
from ance_cli.formats.summary import Clock, Summary, made
from ance_cli.mining.audit import Audit
from ance_cli.mining.filtering import DatasetScope, DuplicateIndex, Filters
from ance_cli.mining.pool import Pool
from ance_cli.mining.sampling import RANDOM, Sampler
from ance_cli.mining.selection import Recipe, select_negatives
from ance_cli.progress import Reporter


def read_earlier(path: Path | None) -> dict[tuple[str, str], set[str]] | None:
    """The negatives of an earlier file, to measure the overlap with."""
    if path is None:
        return None
    return {
        (pair.query_id, pair.positive_id): set(pair.negative_ids)
        for pair in (parse_pair(record, f"{path}:{n}") for n, record in read_records(path))
    }


@dataclass(frozen=True)
class MiningData:
    """What negatives are drawn for and from."""

    queries: dict[str, str]
    """query_id -> text, of the queries that have a positive"""
    positives: dict[str, list[str]]
    duplicates: DuplicateIndex
    scope: DatasetScope | None
    """Of a merged dataset."""


def read_mining_data(dataset: Dataset, config: DrawConfig, call: Call) -> MiningData:
    """Queries, labels and corpus, checked against each other.

    Warns where the depth is a large part of the corpus: then candidates are hardly hard.
    """
    queries = read_queries(dataset.need("queries"), call.skipped)
    duplicates = DuplicateIndex(read_corpus(dataset.corpus, call.skipped))
    qrels = read_qrels(dataset.need("qrels"), queries, duplicates.position, call.skipped)
    positives = positives_of(qrels, config.min_rel)
    if config.negatives and config.depth * 10 > len(duplicates.doc_ids):
        call.reporter.warn(
            f"--depth {config.depth} is over a tenth of the {len(duplicates.doc_ids)} documents: "
            "most of these negatives are not hard ones"
        )
    shares = read_shares(dataset)
    scope = DatasetScope(duplicates.doc_ids, list(shares)) if shares else None
    return MiningData({name: queries[name] for name in positives}, positives, duplicates, scope)


def recipe_of(config: DrawConfig, shares: Mapping[str, float], checkpoint_step: int) -> Recipe:
    """The drawing that a config describes."""
    return Recipe(
        shares,
        config.negatives,
        config.seed,
        checkpoint_step,
        config.depth,
        Sampler(config.sampler, config.sampler_temperature, config.simans_a, config.simans_b),
        Filters(
            config.range_min,
            config.range_max,
            config.max_score,
            config.min_score,
            config.absolute_margin,
            config.relative_margin,
        ),
        config.teacher_max,
        config.teacher_pairs,
    )


def check_scores(recipe: Recipe, unscored: Sequence[str], hint: str) -> None:
    """Refuse rules on scores where the sources `unscored` have none.

    A sampler orders the ranked sources only, so that it may go with an unscored `random`.
    """
    ranked = [source for source in unscored if source != RANDOM]
    for rule, sources in (
        (f"--sampler {recipe.sampler.name}", ranked if recipe.sampler.needs_scores else []),
        ("a limit on scores", unscored if recipe.filters.needs_scores else []),
    ):
        if sources:
            raise UsageProblem(
                f"{rule} needs scores, and there are none for the source {sources[0]}", hint=hint
            )


def audit_of(
    config: DrawConfig,
    shares: Mapping[str, float],
    earlier: Path | None,
    absent: Sequence[str] = (),
    bm25: Callable[[str], set[str]] | None = None,
) -> Audit:
    """An audit that has not seen a pair yet."""
    audit = Audit(config.negatives, shares, absent, read_earlier(earlier), bm25)
    if config.teacher_max is not None:
        audit.probable = config.teacher_max
    return audit


def write_negatives(
    plan: Plan,
    pool: Pool,
    recipe: Recipe,
    audit: Audit,
    texts: Texts | None,
    clock: Clock,
    reporter: Reporter,
) -> Summary:
    """Select, write and audit; `clock` has timed what came before."""
    stats: dict[str, Any] = {}
    num_pairs = sum(len(pool.positives[query_id]) for query_id in pool.query_ids)
    with (
        plan.text_file(stats) as handle,
        reporter.task("drawing", num_pairs, "pair") as bar,
    ):
        with clock("draw"):
            for pair in select_negatives(pool, recipe, audit):
                handle.write(pair.to_line(texts))
                bar.advance()
        stats |= {
            "checkpoint_step": recipe.checkpoint_step,
            "seconds": clock.seconds,
            "audit": audit.summary(),
        }
        if plan.output != STDIO:
            atomic.write_bytes(
                audit_name(plan.output),
                orjson.dumps(stats["audit"], option=orjson.OPT_INDENT_2),
            )
    if audit.short_pairs:
        sources = ", ".join(f"{source} {count}" for source, count in (+audit.missing).items())
        reporter.warn(
            f"{audit.short_pairs} of {audit.pairs} pairs have fewer than {audit.wanted} negatives "
            f"(missing in all: {sources}): their candidates ran out"
        )
    return made(plan, stats)


def all_texts(dataset: Dataset, skipped: SkippedLines | None) -> Texts:
    """Texts of every query and document, for `--with-text`; they are held in memory."""
    passages = read_corpus(dataset.corpus, skipped)
    return Texts(
        read_queries(dataset.need("queries"), skipped),
        {passage.doc_id: passage.joined(" ") for passage in passages},
    )
