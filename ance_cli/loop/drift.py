"""Measures drift on a run's probe: from a generation's own vectors, or with a newer checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import orjson

from ance_cli.config import ComputeConfig
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, queries_of_split, read_corpus
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.manifest import check_files
from ance_cli.formats.records import read_record
from ance_cli.loop.probe import NUM_PASSAGES, NUM_QUERIES, overlap, sample, top
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.texts import TextEncoder
from ance_cli.progress import Reporter, Silent


@dataclass(frozen=True)
class Probe:
    """What `probe.json` holds: positions in file order, ascending."""

    queries: list[int]
    passages: list[int]
    top: list[list[int]]
    """For each query its best passages, as positions in `passages`, best first."""


def probe_generation(
    checkpoint: Checkpoint,
    dataset: Dataset,
    generation: GenerationFolder,
    embeddings: Embeddings,
    seed: int,
    compute: ComputeConfig,
) -> list[list[int]]:
    """Each probe query's best passages by a generation's own vectors; writes `probe.json`."""
    queries = list(queries_of_split(dataset).values())
    asked = sample(len(queries), NUM_QUERIES, seed, "queries").tolist()
    positions = sample(embeddings.num_docs, NUM_PASSAGES, seed, "passages")
    xq, _ = TextEncoder(checkpoint, "query", compute)([queries[position] for position in asked])
    starts, ends = embeddings.doc_offsets[positions], embeddings.doc_offsets[positions + 1]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    vectors = embeddings.rows(rows)
    ranked = top(xq, vectors, ends - starts)
    kept = Probe(asked, positions.tolist(), ranked)
    atomic.write_bytes(generation.probe, orjson.dumps(asdict(kept)))
    return ranked


def read_probe(generation: GenerationFolder) -> Probe | None:
    """The generation's probe; None if there is none that can be read: then only the drift against
    that generation cannot be measured."""
    try:
        if generation.manifest.exists():
            check_files(generation.path, generation.read_manifest(), None)
        return read_record(generation.probe, Probe)
    except (FileNotFoundError, BadInput, Mismatch):
        return None


def measured_overlap(
    checkpoint: Checkpoint,
    dataset: Dataset,
    before: Probe,
    compute: ComputeConfig,
    reporter: Reporter = Silent(),
) -> float:
    """Overlap of the probe's rankings by a checkpoint with those of a generation; encodes only the
    texts of the probe."""
    queries = list(queries_of_split(dataset).values())
    asked = [queries[position] for position in before.queries]
    positions = set(before.passages)
    texts = [
        checkpoint.settings.text_of(passage)
        for position, passage in enumerate(read_corpus(dataset.corpus))
        if position in positions
    ]
    with reporter.task("probing", 1, "checkpoint") as bar:
        xq, _ = TextEncoder(checkpoint, "query", compute)(asked)
        vectors, counts = TextEncoder(checkpoint, "passage", compute)(texts)
        bar.advance()
    return overlap(before.top, top(xq, vectors, counts))
