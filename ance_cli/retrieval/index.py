"""`ance index`: embeddings to a FAISS index in pyserini's folder layout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.call import Call
from ance_cli.config import IndexConfig, shaped_by
from ance_cli.errors import AnceError, UsageProblem
from ance_cli.formats import atomic, lease
from ance_cli.formats.embeddings import Embeddings, write_ids
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    import torch

    from ance_cli.retrieval.faiss_gpu import Placement


_TRAINED_ON = "trained_on"
"""The input of an index that was trained on other embeddings than those whose rows it has."""


def index(
    embeddings: Path,
    output: Path,
    config: IndexConfig = IndexConfig(),
    append: bool = False,
    call: Call = Call(),
) -> Summary:
    """Build an index of any faiss factory string over published passage embeddings.

    With `append` an existing index may have been made of other embeddings of the same tower. It is
    filled with the rows of these, and keeps its training.

    With `config.recall_check` the manifest's stats also hold the recall against exact search; an
    existing index is measured if it was not measured before.
    """
    refuse_stdio(output, "an index folder")
    refuse_stdio(embeddings, "an embeddings folder")
    if append and call.force:
        raise UsageProblem(
            "--append with --force: one keeps the index's training, the other trains it again",
            hint="leave one of them out",
        )
    plan = _plan(embeddings, output, config)
    plan.append = append
    manifest = plan.published(call.force)
    if append and not manifest and plan.exists:
        plan.inputs |= _training(plan, embeddings, config)
        manifest = plan.published()
    if manifest:
        if config.recall_check and "recall_queries" not in manifest["stats"] and not call.dry_run:
            manifest = _measure_existing(plan, embeddings, config, call.reporter)
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    from ance_cli.retrieval.faiss_gpu import devices_of
    from ance_cli.retrieval.faiss_index import new_index

    vectors = Embeddings(embeddings)
    # refused before a file is written
    new_index(vectors.dim, config.factory, config.probes)
    devices = devices_of(config.gpus)
    with lease.hold(lease.lease_name(output), str(output)):
        manifest = _build(plan, vectors, config, devices, call.reporter)
    return summary_of(manifest, output, up_to_date=False)


def _plan(embeddings: Path, output: Path, config: IndexConfig) -> Plan:
    made_from = read_manifest(embeddings, "embeddings")
    inputs = {name: made_from["inputs"].get(name, "") for name in ("tower", "corpus")}
    inputs["embeddings"] = made_from["fingerprint"]
    unused = ("train_rows", "seed") if config.factory == "Flat" else ()
    settings = {
        name: value
        for name, value in shaped_by(config).items()
        if value is not None and name not in unused
    }
    ran_with = {"embeddings": str(embeddings.resolve())}
    outdated_by = ("embeddings", "corpus", _TRAINED_ON)
    return Plan("index", output, settings, inputs, ran_with, (embeddings,), outdated_by)


def _training(plan: Plan, embeddings: Path, config: IndexConfig) -> dict[str, str]:
    """The embeddings on which the existing index was trained, if it needs training and they are
    others than those that it is filled with."""
    from ance_cli.retrieval.faiss_index import new_index

    inputs = read_manifest(plan.output, "index")["inputs"]
    trained_on = inputs.get(_TRAINED_ON, inputs["embeddings"])
    dim = read_manifest(embeddings, "embeddings")["content"]["dim"]
    if new_index(dim, config.factory).is_trained or trained_on == plan.inputs["embeddings"]:
        return {}
    return {_TRAINED_ON: trained_on}


def _build(
    plan: Plan,
    vectors: Embeddings,
    config: IndexConfig,
    devices: Sequence[torch.device],
    reporter: Reporter,
) -> dict[str, Any]:
    """Build and publish the index; returns the manifest."""
    import faiss

    from ance_cli.retrieval.faiss_index import DOC_IDS, INDEX, build_index, emptied, row_names

    placement = _placement(vectors, config, devices, reporter)
    started = time.monotonic()
    trained = emptied(plan.output) if _TRAINED_ON in plan.inputs else None
    folder = plan.open_partial(force=True)  # an index is one piece: there is nothing to continue
    try:
        with reporter.task("indexing", vectors.num_rows, "row") as bar:
            built = build_index(vectors, config, bar.advance, placement, trained)
    except AnceError:
        atomic.remove(folder)
        raise
    with atomic.disk_errors(plan.output):
        faiss.write_index(built, str(folder / INDEX))
    write_ids(folder / DOC_IDS, row_names(vectors))
    stats: dict[str, Any] = {
        "rows": vectors.num_rows,
        "dim": vectors.dim,
        "docs": vectors.num_docs,
        "max_segments": vectors.max_segments,
        "device": placement.devices,
        "seconds": round(time.monotonic() - started, 2),
    }
    if config.recall_check:
        stats |= _recall(built, vectors, config, reporter)
    content = {"rows": vectors.num_rows, "dim": vectors.dim, "xxh3": hash_file(folder / INDEX)}
    return plan.publish_folder(content, stats)


def _placement(
    vectors: Embeddings, config: IndexConfig, devices: Sequence[torch.device], reporter: Reporter
) -> Placement:
    """Where to build; says why on the CPU, if there are GPUs."""
    from ance_cli.retrieval.faiss_gpu import Placement, place_build, placed
    from ance_cli.retrieval.faiss_index import new_index

    if not devices:
        return Placement()
    empty = new_index(vectors.dim, config.factory, config.probes)
    placement = placed(devices, lambda gpus: place_build(empty, vectors.num_rows, gpus))
    if placement.reason:
        reporter.say(f"building the index on the CPU: {placement.reason}")
    return placement


def _measure_existing(
    plan: Plan, embeddings: Path, config: IndexConfig, reporter: Reporter
) -> dict[str, Any]:
    """Add the recall of an existing index to its manifest; returns the manifest."""
    from ance_cli.retrieval.faiss_index import FaissIndex

    opened = FaissIndex(plan.output).index
    return plan.add_stats(_recall(opened, Embeddings(embeddings), config, reporter))


def _recall(
    built: object, vectors: Embeddings, config: IndexConfig, reporter: Reporter
) -> dict[str, Any]:
    from ance_cli.retrieval.recall import check_recall

    with reporter.task("checking recall", config.recall_check, "query") as bar:
        measured = check_recall(built, vectors, config.recall_check, config.seed)
        bar.advance(config.recall_check)
    return measured
