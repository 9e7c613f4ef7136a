"""The negatives file: drawn from a pool, written, and audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.call import Call
from ance_cli.config import DrawConfig
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import is_stream, read_records
from ance_cli.formats.manifest import check_sidecar
from ance_cli.formats.negatives_file import Texts, audit_name, parse_pair
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Clock, Summary, made, planned, summary_of
from ance_cli.mining.audit import Audit
from ance_cli.mining.mix import Mix
from ance_cli.mining.pool import Pool
from ance_cli.mining.selection import Draw, select_negatives
from ance_cli.mining.text_filters import teacher_inputs
from ance_cli.progress import Reporter


@dataclass(frozen=True)
class NegativesFiles:
    """The files of a call that draws negatives, apart from its dataset and its model."""

    output: Path
    earlier: Path | None = None
    """An earlier negatives file; the audit reports the overlap with it."""
    with_text: bool = False
    """Add the texts of queries and passages to each line."""

    def inputs(self, config: DrawConfig) -> dict[str, str]:
        """The manifest inputs of a draw: the earlier negatives and the teacher."""
        earlier = {"earlier": hash_file(self.earlier)} if self.earlier else {}
        return {**earlier, **teacher_inputs(config)}


def nothing_to_write(plan: Plan, call: Call) -> Summary | None:
    """The summary of a call that writes nothing, because its output is up to date or because of
    --dry-run; None if there is something to write."""
    if manifest := plan.published(call.force):
        return summary_of(manifest, plan.output, up_to_date=True)
    return planned(plan.kind, plan.output, plan.shaped_by) if call.dry_run else None


def new_audit(
    config: DrawConfig,
    mix: Mix,
    files: NegativesFiles,
    bm25: Callable[[str], set[str]] | None = None,
) -> Audit:
    """An audit without a pair; `bm25` is query_id -> the documents that BM25 ranks highest."""
    audit = Audit(config.negatives, mix.shares, mix.absent, _read_earlier(files.earlier), bm25)
    if config.teacher_max is not None:
        audit.probable = config.teacher_max
    return audit


def _read_earlier(path: Path | None) -> dict[tuple[str, str], set[str]] | None:
    if path is None:
        return None
    found = {
        (pair.query_id, pair.positive_id): set(pair.negative_ids)
        for pair in (parse_pair(record, f"{path}:{n}") for n, record in read_records(path))
    }
    check_sidecar(path)
    return found


def write_negatives(
    plan: Plan,
    pool: Pool,
    draw: Draw,
    audit: Audit,
    texts: Texts | None,
    clock: Clock,
    reporter: Reporter,
) -> Summary:
    """Draw the negatives of every pair, and write them and their audit; `clock` holds the seconds
    of the steps before."""
    stats: dict[str, Any] = {}
    num_pairs = sum(len(pool.positives[query_id]) for query_id in pool.query_ids)
    with plan.text_file(stats) as handle, reporter.task("drawing", num_pairs, "pair") as bar:
        with clock("draw"):
            for pair in select_negatives(pool, draw, audit):
                handle.write(pair.to_line(texts))
                bar.advance()
        stats |= {
            "checkpoint_step": draw.checkpoint_step,
            "seconds": clock.seconds,
            "audit": audit.summary(),
        }
        if not is_stream(plan.output):
            atomic.write_bytes(
                audit_name(plan.output),
                orjson.dumps(stats["audit"], option=orjson.OPT_INDENT_2),
            )
    _warn_of_shortfall(audit, reporter)
    return made(plan, stats)


def _warn_of_shortfall(audit: Audit, reporter: Reporter) -> None:
    if audit.short_pairs:
        sources = ", ".join(f"{source} {count}" for source, count in (+audit.missing).items())
        reporter.warn(
            f"{audit.short_pairs} of {audit.pairs} pairs have fewer than {audit.wanted} negatives "
            f"(missing in all: {sources}): their candidates ran out"
        )
