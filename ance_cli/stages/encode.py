"""`ance encode`: a corpus, or queries, to memory-mapped vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from ance_cli.config import EncodeConfig
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset, read_corpus, read_qrels, read_queries
from ance_cli.formats.embeddings import BLOCK_DOCS, UNFINISHED_ONLY, EmbeddingsWriter
from ance_cli.formats.hashing import hash_file, hash_lines
from ance_cli.formats.jsonl import Skipped, refuse_stdio
from ance_cli.formats.manifest import Plan
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter, Silent
from ance_cli.stages.summary import Summary, planned, summary_of


def encode(
    checkpoint: Checkpoint,
    dataset: Dataset,
    output: Path,
    config: EncodeConfig = EncodeConfig(),
    force: bool = False,
    dry_run: bool = False,
    skipped: Skipped | None = None,
    reporter: Reporter = Silent(),
) -> Summary:
    """Encode the dataset's corpus (`side="passage"`) or its queries (`side="query"`).

    Only blocks that an earlier, interrupted call left undone are encoded. Raises `BadInput` for a
    broken corpus, a checkpoint that is not whole, or vectors that are not finite.
    """
    refuse_stdio(output, "an embeddings folder")
    plan = _plan(checkpoint, dataset, output, config, skipped)
    if manifest := plan.published(force):
        return summary_of(manifest, output, up_to_date=True)
    if dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.hold(lease.lease_name(output), str(output)):
        ids = [name for name, _ in _texts(dataset, config.side, checkpoint, skipped)]
        return _encode(checkpoint, dataset, plan, config, ids, force, skipped, reporter)


def _plan(
    checkpoint: Checkpoint,
    dataset: Dataset,
    output: Path,
    config: EncodeConfig,
    skipped: Skipped | None,
) -> Plan:
    side = config.side
    inputs = {"tower": checkpoint.tower_hash(side)}
    if side == "passage":
        inputs["corpus"] = hash_file(dataset.corpus)
    else:
        texts = _texts(dataset, side, checkpoint, skipped)
        inputs["queries"] = hash_lines(f"{name}\t{text}" for name, text in texts)
    shaped_by = {
        "side": side,
        "dtype": config.dtype,
        "output_dtype": config.output_dtype,
        "block_docs": BLOCK_DOCS,
        **checkpoint.pins.shaping(side),
    }
    ran_with = {"checkpoint": str(checkpoint.path), "gpus": config.gpus}
    return Plan("embeddings", output, shaped_by, inputs, ran_with)


def _texts(
    dataset: Dataset, side: str, checkpoint: Checkpoint, skipped: Skipped | None
) -> Iterator[tuple[str, str]]:
    """(id, text) of what is encoded, in order: the corpus, or the queries of the split."""
    if side == "passage":
        for passage in read_corpus(dataset.corpus, skipped):
            yield passage.doc_id, passage.joined(checkpoint.pins.separator)
        return
    queries = read_queries(dataset.need("queries"), skipped)
    wanted = queries
    if dataset.qrels is not None:
        qrels = read_qrels(dataset.qrels, known_queries=queries, skipped=skipped)
        wanted = {query_id: queries[query_id] for query_id in qrels}
    yield from wanted.items()


def _encode(
    checkpoint: Checkpoint,
    dataset: Dataset,
    plan: Plan,
    config: EncodeConfig,
    ids: list[str],
    force: bool,
    skipped: Skipped | None,
    reporter: Reporter,
) -> Summary:
    from ance_cli.models.devices import choose_devices, choose_dtype
    from ance_cli.models.encoder import load_encoder
    from ance_cli.models.inference import InferenceEngine
    from ance_cli.models.tokens import Tokenizer

    started = time.monotonic()
    devices = choose_devices(config.gpus)
    dtype = choose_dtype(config.dtype, devices[0])
    plan.shaped_by["dtype"] = dtype
    plan.ran_with["devices"] = [str(device) for device in devices]
    tokenizer = Tokenizer(checkpoint)
    engine = InferenceEngine(
        load_encoder(checkpoint, config.side), tokenizer.pad_id_of(config.side), devices, dtype,
        config.tokens_for(devices[0].type),
    )  # fmt: skip
    folder = plan.open_partial(force)
    writer = EmbeddingsWriter(folder, len(ids), engine.dim, config.output_dtype, BLOCK_DOCS)
    resumed = writer.num_done
    if resumed:
        reporter.say(f"{resumed} of {writer.num_blocks} blocks are done already")
    tokens = rows_encoded = 0
    side = plan.shaped_by["side"]
    texts = _texts(dataset, side, checkpoint, skipped)
    first = sum(len(writer.docs_of(block)) for block in range(resumed))
    with reporter.task("encoding", len(ids), side, done=first) as bar:
        remaining = islice(texts, first, None)
        for block in range(resumed, writer.num_blocks):
            chunk = list(islice(remaining, len(writer.docs_of(block))))
            rows = tokenizer([text for _, text in chunk], side)
            progress = _DocProgress(bar.advance, len(chunk), rows.num_rows)
            vectors = engine.encode(rows, progress)
            _check_finite(vectors, [name for name, _ in chunk], rows.row_counts, checkpoint)
            writer.write_block(block, vectors, rows.row_counts)
            tokens += int(rows.offsets[-1])
            rows_encoded += rows.num_rows
    if side == "passage" and hash_file(dataset.corpus) != plan.inputs["corpus"]:
        raise BadInput(
            f"{dataset.corpus}: changed while it was read",
            hint="encode again with --force, once nobody writes to it",
        )
    content = writer.finish(ids)
    seconds = time.monotonic() - started
    stats = {
        "docs": len(ids),
        "rows": content["rows"],
        "dim": content["dim"],
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "rows_per_s": round(rows_encoded / seconds, 1),
        "dtype": dtype,
    }
    return summary_of(
        plan.publish_folder(content, stats, UNFINISHED_ONLY), plan.output, up_to_date=False
    )


class _DocProgress:
    """Turns rows into documents for the progress bar (MaxP has several rows a document)."""

    def __init__(self, advance, docs: int, rows: int) -> None:  # type: ignore[no-untyped-def]
        self._advance, self._docs, self._rows = advance, docs, rows
        self._seen = self._told = 0

    def __call__(self, rows: int) -> None:
        self._seen += rows
        now = self._seen * self._docs // self._rows
        self._advance(now - self._told)
        self._told = now


def _check_finite(
    vectors: np.ndarray, ids: list[str], row_counts: np.ndarray, checkpoint: Checkpoint
) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        owner = np.repeat(np.arange(len(ids)), row_counts)
        raise BadInput(
            f"{checkpoint.shown}: the vector of {ids[owner[bad[0]]]!r} and {len(bad) - 1} others "
            "are not finite (NaN or infinite)",
            hint="the checkpoint is damaged or training diverged; use an earlier one, "
            "or --dtype fp32",
        )
