"""`ance index`: embeddings to a FAISS index in pyserini's folder layout."""

from __future__ import annotations

import time
from pathlib import Path

from ance_cli.config import IndexConfig
from ance_cli.formats import lease
from ance_cli.formats.atomic import disk_errors
from ance_cli.formats.embeddings import Embeddings, write_ids
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.manifest import Plan, read_manifest
from ance_cli.progress import Reporter, Silent
from ance_cli.stages.summary import Summary, planned, summary_of


def index(
    embeddings: Path,
    output: Path,
    config: IndexConfig = IndexConfig(),
    force: bool = False,
    dry_run: bool = False,
    reporter: Reporter = Silent(),
) -> Summary:
    """Build an index of any faiss factory string over published passage embeddings."""
    refuse_stdio(output, "an index folder")
    refuse_stdio(embeddings, "an embeddings folder")
    made_from = read_manifest(embeddings, "embeddings")
    inputs = {name: made_from["inputs"].get(name, "") for name in ("tower", "corpus")}
    inputs["embeddings"] = made_from["fingerprint"]
    shaped_by = {"factory": config.factory}
    if config.factory != "Flat":
        shaped_by |= {"train_rows": config.train_rows, "seed": config.seed}  # type: ignore[dict-item]
    plan = Plan("index", output, shaped_by, inputs, {"embeddings": str(embeddings.resolve())})
    if manifest := plan.published(force):
        return summary_of(manifest, output, up_to_date=True)
    if dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    import faiss

    from ance_cli.retrieval.faiss_index import DOC_IDS, INDEX, build_index, new_index, row_names

    started = time.monotonic()
    vectors = Embeddings(embeddings)
    new_index(vectors.dim, config.factory)  # a bad factory string is refused before any file
    with lease.hold(lease.lease_name(output), str(output)):
        folder = plan.open_partial(force)
        with reporter.task("indexing", vectors.num_rows, "row") as bar:
            built = build_index(
                vectors, config.factory, config.train_rows, config.seed, bar.advance
            )
        with disk_errors(output):
            faiss.write_index(built, str(folder / INDEX))
        write_ids(folder / DOC_IDS, row_names(vectors))
        stats = {
            "rows": vectors.num_rows,
            "dim": vectors.dim,
            "docs": vectors.num_docs,
            "max_segments": vectors.max_segments,
            "seconds": round(time.monotonic() - started, 2),
        }
        content = {"rows": vectors.num_rows, "dim": vectors.dim, "xxh3": hash_file(folder / INDEX)}
        manifest = plan.publish_folder(content, stats)
    return summary_of(manifest, output, up_to_date=False)
