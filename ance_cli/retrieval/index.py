"""`ance index`: embeddings to a FAISS index in pyserini's folder layout."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import IndexConfig
from ance_cli.errors import AnceError
from ance_cli.formats import atomic, lease
from ance_cli.formats.embeddings import Embeddings, write_ids
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.manifest import Plan, read_manifest
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.progress import Reporter


def index(
    embeddings: Path,
    output: Path,
    config: IndexConfig = IndexConfig(),
    call: Call = Call(),
) -> Summary:
    """Build an index of any faiss factory string over published passage embeddings.

    `config.recall_check` passages are searched in it and exactly; the recall goes into the
    manifest's stats, also of an index that was there already.
    """
    refuse_stdio(output, "an index folder")
    refuse_stdio(embeddings, "an embeddings folder")
    made_from = read_manifest(embeddings, "embeddings")
    inputs = {name: made_from["inputs"].get(name, "") for name in ("tower", "corpus")}
    inputs["embeddings"] = made_from["fingerprint"]
    shaped_by: dict[str, Any] = {"factory": config.factory}
    if config.factory != "Flat":
        shaped_by |= {"train_rows": config.train_rows, "seed": config.seed}
    if config.probes is not None:
        shaped_by["probes"] = config.probes
    ran_with = {"embeddings": str(embeddings.resolve())}
    plan = Plan("index", output, shaped_by, inputs, ran_with, (embeddings,))
    if manifest := plan.published(call.force):
        if config.recall_check and "recall_queries" not in manifest["stats"] and not call.dry_run:
            from ance_cli.retrieval.faiss_index import FaissIndex

            opened = FaissIndex(output).index
            manifest = plan.add_stats(
                _recall(opened, Embeddings(embeddings), config, call.reporter)
            )
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    import faiss

    from ance_cli.retrieval.faiss_index import DOC_IDS, INDEX, build_index, new_index, row_names

    started = time.monotonic()
    vectors = Embeddings(embeddings)
    new_index(vectors.dim, config.factory, config.probes)  # refused before any file is there
    with lease.hold(lease.lease_name(output), str(output)):
        folder = plan.open_partial(force=True)  # nothing to continue: an index is one piece
        try:
            with call.reporter.task("indexing", vectors.num_rows, "row") as bar:
                built = build_index(
                    vectors, config.factory, config.train_rows, config.seed, bar.advance,
                    config.probes,
                )  # fmt: skip
        except AnceError:
            atomic.remove(folder)
            raise
        with atomic.disk_errors(output):
            faiss.write_index(built, str(folder / INDEX))
        write_ids(folder / DOC_IDS, row_names(vectors))
        stats: dict[str, Any] = {
            "rows": vectors.num_rows,
            "dim": vectors.dim,
            "docs": vectors.num_docs,
            "max_segments": vectors.max_segments,
            "seconds": round(time.monotonic() - started, 2),
        }
        if config.recall_check:
            stats |= _recall(built, vectors, config, call.reporter)
        content = {"rows": vectors.num_rows, "dim": vectors.dim, "xxh3": hash_file(folder / INDEX)}
        manifest = plan.publish_folder(content, stats)
    return summary_of(manifest, output, up_to_date=False)


def _recall(
    built: object, vectors: Embeddings, config: IndexConfig, reporter: Reporter
) -> dict[str, Any]:
    from ance_cli.retrieval.recall import check_recall

    with reporter.task("checking recall", config.recall_check, "query") as bar:
        measured = check_recall(built, vectors, config.recall_check, config.seed)
        bar.advance(config.recall_check)
    return measured
