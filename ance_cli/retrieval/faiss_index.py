"""FAISS indexes in pyserini's folder layout: the files `index` and `docid` (one id per row).

Any factory string can be built. An index that needs training learns from a bounded, seeded sample
of the embeddings. A MaxP document's rows are named `ID#0`, `ID#1`, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import numpy.typing as npt

from ance_cli.config import IndexConfig
from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem, is_out_of_memory
from ance_cli.formats.embeddings import Embeddings, read_ids
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.manifest import check_files, read_manifest
from ance_cli.retrieval.exact import Found, in_order, pool_to_documents
from ance_cli.retrieval.faiss_gpu import MAX_SELECTED, Placement, searched, to_cpu, to_gpus, train
from ance_cli.retrieval.query_batches import QueryBatches

if TYPE_CHECKING:
    import torch

INDEX = "index"
DOC_IDS = "docid"
SEGMENT_MARK = "#"

_RESULT_BYTES = 64 << 20
_FACTORIES = "use for instance Flat, IVF1024,Flat, HNSW32 or OPQ16,IVF1024,PQ16"
_CRASHES = re.compile(r"[^\W\d_]0+(?!\d)|HNSW0*1(?!\d)|[^ -~]")


def _reason(error: RuntimeError) -> str:
    """The last line of faiss's message; the lines before it are its source code."""
    return str(error).strip().splitlines()[-1]


def new_index(dim: int, factory: str, probes: int | None = None) -> Any:
    """An empty inner-product index; `UsageProblem` if faiss does not know the string.

    `probes` is the number of inverted lists that a query visits, unless its search sets another.
    """
    if _CRASHES.search(factory):  # faiss ends the process, now or in the first search
        raise UsageProblem(
            f"--factory {factory!r}: its numbers must be at least 1, that of HNSW at least 2",
            hint=_FACTORIES,
        )
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageProblem(
            f"--factory {factory!r} is not a faiss factory string for {dim} dimensions "
            f"({_reason(error)})",
            hint=f"{_FACTORIES}; PQ needs a divisor of the dimension",
        ) from error
    if probes is not None and not set_probes(index, probes):
        raise UsageProblem(
            f"--probes does not apply to --factory {factory!r}: it has no inverted lists"
        )
    return index


def rows_to_train(index: Any) -> int:
    """The fewest rows from which an index can learn its centroids: one per centroid.

    faiss checks this as well, but does not say how many rows it needs.
    """
    index = faiss.downcast_index(index)
    needed = [int(getattr(index, "nlist", 1))]
    if hasattr(index, "pq"):
        needed.append(int(index.pq.ksub))
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a C++ vector, although its type hints say otherwise
        transforms = [chain.at(place) for place in range(chain.size())]
        if any(isinstance(faiss.downcast_VectorTransform(t), faiss.OPQMatrix) for t in transforms):
            needed.append(256)  # its rotation is fitted to a quantizer of 8 bits
        needed.append(rows_to_train(index.index))
    if isinstance(index, faiss.IndexRefine):
        needed.append(rows_to_train(index.base_index))
    return max(needed)


def build_index(
    embeddings: Embeddings,
    config: IndexConfig,
    on_rows: Callable[[int], None] | None = None,
    placement: Placement = Placement(),
    trained: Any = None,
) -> Any:
    """Train (if the factory string needs it) and fill an index over all rows, which is on the CPU
    in the end.

    `on_rows` is called with the number of rows added since the last call. `trained` is an empty
    index that is filled instead of a new one.
    """
    index = trained or new_index(embeddings.dim, config.factory, config.probes)
    if not index.is_trained:
        index = _trained(index, embeddings, config, placement)
    try:
        growing = to_gpus(index, placement)
        for _, xb in embeddings.blocks():
            growing.add(np.ascontiguousarray(xb, np.float32))
            if on_rows:
                on_rows(len(xb))
        index = to_cpu(growing, placement)
    except RuntimeError as error:
        _check_memory(error, placement)
        raise UsageProblem(
            f"--factory {config.factory!r} does not accept rows ({_reason(error)})",
            hint="use for instance Flat, HNSW32 or IVF1024,Flat",
        ) from error
    try:
        index.search(np.zeros((1, embeddings.dim), np.float32), 1)
    except RuntimeError as error:
        raise UsageProblem(
            f"--factory {config.factory!r} cannot be searched ({_reason(error)})", hint=_FACTORIES
        ) from error
    return index


def _trained(index: Any, embeddings: Embeddings, config: IndexConfig, placement: Placement) -> Any:
    """The index, trained on a seeded sample of the rows."""
    count = min(config.train_rows, embeddings.num_rows)
    generator = np.random.Generator(np.random.Philox(key=config.seed))
    chosen = np.sort(generator.choice(embeddings.num_rows, count, replace=False))
    sample = embeddings.rows(chosen)
    try:
        if count < rows_to_train(index):
            raise RuntimeError(f"it takes at least {rows_to_train(index):,}")
        return train(index, sample, placement)
    except RuntimeError as error:
        _check_memory(error, placement)
        raise BadInput(
            f"{embeddings.folder}: {count} rows are too few to train {config.factory!r} "
            f"({_reason(error)})",
            hint="train on more rows with --train-rows"
            if count < embeddings.num_rows
            else "use --factory Flat, or fewer centroids",
        ) from error


def _check_memory(error: RuntimeError, placement: Placement) -> None:
    """Raise `ResourceExhausted` if memory ran out on a GPU."""
    if placement.gpus and is_out_of_memory(error):
        raise ResourceExhausted(
            f"memory ran out on {placement.devices} while the index was built",
            hint="free the GPU, or build the index on the CPU with --gpus none",
        ) from error


def row_names(embeddings: Embeddings) -> list[str]:
    """One name per row: the document's id, or `ID#segment` if documents have several rows."""
    counts = np.diff(embeddings.doc_offsets)
    if embeddings.max_segments == 1:
        return list(embeddings.ids)
    return [
        f"{doc_id}{SEGMENT_MARK}{segment}"
        for doc_id, count in zip(embeddings.ids, counts, strict=True)
        for segment in range(count)
    ]


def _read(folder: Path, manifest: dict[str, Any], is_mapped: bool) -> Any:
    """The index of a published folder, memory-mapped if that is asked for and its type allows it;
    `BadInput` if it is damaged."""
    path = folder / INDEX
    if hash_file(path) != manifest["content"]["xxh3"]:
        raise BadInput(
            f"{path}: is damaged: its hash differs from the one in the manifest",
            hint="build it again with: ance index --force",
        )
    if is_mapped:
        with suppress(RuntimeError):
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise BadInput(
            f"{path}: not a complete FAISS index ({_reason(error)})",
            hint="build it again with: ance index --force",
        ) from error


def emptied(folder: Path) -> Any:
    """A published index without its rows, but trained."""
    # FAISS ends the process if a mapped index is emptied
    index = _read(folder, read_manifest(folder, "index"), is_mapped=False)
    index.reset()
    return index


class FaissIndex:
    """A published index, memory-mapped if its type allows that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, "index")
        self.index = _read(folder, self.manifest, is_mapped=True)
        names = read_ids(folder / DOC_IDS)
        if len(names) != self.index.ntotal:
            raise BadInput(
                f"{folder / DOC_IDS}: {len(names)} ids for {self.index.ntotal} vectors: "
                "rows and ids disagree",
                hint="build it again with: ance index --force",
            )
        check_files(folder, self.manifest, "build it again with: ance index --force")
        self.max_segments = int(self.manifest["stats"]["max_segments"])
        if self.max_segments > 1:
            names = [name.rpartition(SEGMENT_MARK)[0] for name in names]
        self.ids = list(dict.fromkeys(names))
        position = {doc_id: place for place, doc_id in enumerate(self.ids)}
        self.doc_of_row = np.fromiter((position[name] for name in names), np.int32, len(names))
        self._batches = QueryBatches()
        self._copies: dict[bool, Any] = {}
        """Whether a search is too deep for GPUs -> the index or the copy of it that is searched."""

    def place(
        self, devices: Sequence[torch.device], depth: int, say: Callable[[str], None]
    ) -> None:
        """Copy the index to the GPUs among the devices, if searches to this depth can run there.

        `say` is called with a sentence about where the index is searched, if there are GPUs.
        A further call for such a depth does nothing.
        """
        k = rows_per_query(self.index, depth, self.max_segments)
        if (k > MAX_SELECTED) not in self._copies:
            self._batches = QueryBatches(say)
            self._copies[k > MAX_SELECTED] = searched(self.index, k, devices, say)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def tower(self) -> str:
        """Hash of the tower that made the vectors."""
        return str(self.manifest["inputs"]["tower"])

    def set_probes(self, probes: int | None) -> None:
        """Set how many inverted lists a query visits; None keeps the index's number."""
        if probes is not None and not set_probes(self.index, probes):
            raise UsageProblem(
                f"--probes does not apply to {self.folder}: it has no inverted lists"
            )
        self._copies.clear()

    def search(
        self, xq: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """(nq, k) scores and row positions, best first, -1 = none."""
        D, I = self.index.search(np.ascontiguousarray(xq), k)  # noqa: E741
        return D, I

    def top_docs(
        self,
        xq: npt.NDArray[np.float32],
        depth: int,
        on_queries: Callable[[int], None] | None = None,
        out: Found | None = None,
    ) -> Found:
        """(nq, depth) scores and document positions in corpus order, best first, -1 = none.

        The results are written to `out`, if given.
        """
        k = rows_per_query(self.index, depth, self.max_segments)
        return index_top_docs(
            self._copies.get(k > MAX_SELECTED, self.index),
            xq,
            depth,
            self.max_segments,
            self.doc_of_row,
            on_queries,
            out,
            self._batches,
        )


def set_probes(index: Any, probes: int) -> bool:
    """Set how many inverted lists a query visits (`nprobe`); False if the index has none."""
    try:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", probes)
    except RuntimeError:
        return False
    return True


def rows_per_query(index: Any, depth: int, max_segments: int) -> int:
    """How many rows a search to this depth finds for each query.

    MaxP pools `depth * max_segments` rows, which hold at least `depth` documents.
    """
    return min(depth * max_segments, max(int(index.ntotal), depth))


def index_top_docs(
    index: Any,
    xq: npt.NDArray[np.float32],
    depth: int,
    max_segments: int,
    doc_of_row: npt.NDArray[np.int32],
    on_queries: Callable[[int], None] | None = None,
    out: Found | None = None,
    batches: QueryBatches | None = None,
) -> Found:
    """(nq, depth) scores and document positions from a faiss index, best first, -1 = none."""
    nq, k = len(xq), rows_per_query(index, depth, max_segments)
    D, docs = out or (np.empty((nq, depth), np.float32), np.empty((nq, depth), np.int32))

    def search(part: slice) -> None:
        found = in_order(*index.search(np.ascontiguousarray(xq[part]), k))
        if max_segments > 1:
            found = pool_to_documents(*found, doc_of_row, depth)
        D[part], docs[part] = found
        if on_queries:
            on_queries(len(found[0]))

    batches = batches or QueryBatches()
    batches.search(nq, max(1, _RESULT_BYTES // (12 * k)), search)
    return D, docs
