"""`ance mine`: negatives that the model itself ranks high, from the whole corpus.

D- = ANN_f(q, C) \\ D+ (ICLR Sec. 4, arXiv Eq. 10): encode the queries, search the embeddings
exactly or an index, remove every known positive and every copy of one, draw.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ance_cli.config import EncodeConfig, MineConfig
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates, read_candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, Skipped
from ance_cli.formats.manifest import Plan
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.negatives.sampling import RANDOM, parse_mix
from ance_cli.progress import Reporter, Silent
from ance_cli.retrieval.dense import DenseRetriever, VectorSource
from ance_cli.stages.negatives import Sides, all_texts, beside, read_sides, write_negatives
from ance_cli.stages.summary import Summary, planned, summary_of


def mine(
    checkpoint: Checkpoint,
    dataset: Dataset,
    source: VectorSource,
    output: Path,
    config: MineConfig = MineConfig(),
    encode_config: EncodeConfig = EncodeConfig(),
    candidates_folder: Path | None = None,
    earlier: Path | None = None,
    with_text: bool = False,
    force: bool = False,
    dry_run: bool = False,
    skipped: Skipped | None = None,
    reporter: Reporter = Silent(),
) -> Summary:
    """Mine negatives for every (query, positive) pair of the split.

    Writes the negatives, their audit (`.audit.json`) and the candidates they were drawn from
    (`.candidates/`, or `candidates_folder`), from which other samplers can draw without a search.
    Refuses vectors of another passage tower or of another corpus (`Mismatch`).
    """
    shares = parse_mix(config.mix, ("ann", RANDOM))
    source.check(checkpoint, hash_file(dataset.corpus))
    step = checkpoint.pins.training_step
    folder = candidates_folder or (beside(output, ".candidates") if output != STDIO else None)
    searched = Plan(
        "candidates",
        folder or output,
        {
            "depth": config.depth,
            "dtype": encode_config.dtype,
            "probes": config.probes,
            "min_rel": config.min_rel,
        },
        {
            "vectors": source.fingerprint,
            "query_tower": checkpoint.tower_hash("query"),
            "queries": hash_file(dataset.need("queries")),
            "qrels": hash_file(dataset.need("qrels")),
        },
        {"checkpoint": str(checkpoint.path)},
    )
    plan = Plan(
        "negatives",
        output,
        {
            **searched.shaped_by,
            "negatives": config.negatives,
            "mix": config.mix,
            "sampler": config.sampler,
            "seed": config.seed,
            "with_text": with_text,
            "checkpoint_step": step,
        },
        {**searched.inputs, **({"earlier": hash_file(earlier)} if earlier else {})},
        searched.ran_with,
    )
    if manifest := plan.published(force):
        return summary_of(manifest, output, up_to_date=True)
    if dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    def work() -> Summary:
        sides = read_sides(dataset, config.min_rel, config.depth, skipped, reporter)
        started = time.monotonic()
        candidates = _candidates(
            searched, folder, checkpoint, source, config, encode_config, sides, force, reporter
        )
        plan.shaped_by["dtype"] = searched.shaped_by["dtype"]
        texts = all_texts(dataset, skipped) if with_text else None
        stats: dict[str, Any] = {"search_seconds": round(time.monotonic() - started, 2)}
        return write_negatives(
            plan, candidates, sides, "ann", shares, step, earlier, texts, stats, reporter
        )

    if output == STDIO:
        return work()
    with lease.hold(lease.lease_name(output), str(output)):
        return work()


def _candidates(
    plan: Plan,
    folder: Path | None,
    checkpoint: Checkpoint,
    source: VectorSource,
    config: MineConfig,
    encode_config: EncodeConfig,
    sides: Sides,
    force: bool,
    reporter: Reporter,
) -> Candidates:
    """The ranked documents of each query: those that lie in `folder`, or newly searched."""
    from ance_cli.retrieval.exact import positive_scores

    if folder is not None and (manifest := plan.published(force)):
        plan.shaped_by["dtype"] = manifest["shaped_by"]["dtype"]
        reporter.say(f"drawing from the candidates in {folder}")
        return read_candidates(folder)
    retriever = DenseRetriever(checkpoint, source, encode_config, config.probes)
    plan.shaped_by["dtype"] = retriever.dtype
    xq = retriever.encode_queries(list(sides.queries.values()), reporter)
    scores, docs = retriever.search(xq, config.depth, reporter)
    known = {}
    if retriever.embeddings is not None:
        known = positive_scores(xq, list(sides.queries), sides.positives, retriever.embeddings)
    candidates = Candidates(list(sides.queries), docs, scores, known)
    if folder is not None:
        with lease.hold(lease.lease_name(folder), str(folder)):
            partial = plan.open_partial(force=True)  # a search is one piece: nothing to continue
            content = candidates.write(partial)
            plan.publish_folder(content, {"dtype": retriever.dtype})
    return candidates
