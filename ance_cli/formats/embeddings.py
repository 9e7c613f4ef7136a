"""Embeddings on disk: a folder with a memory-mapped matrix that is written in resumable blocks.

`embeddings.npy` has a row for each vector, in a format of `row_format`: (rows, dim) float16 or
float32 in C order, or rounded. `ids.txt` has one document id per line; `doc_offsets.npy` is int64
(documents + 1,): document i has the rows `doc_offsets[i]:doc_offsets[i + 1]`, one row for FirstP
and up to `max_segments` for MaxP. `doc_hashes.npy` is uint64 (documents,): the hash of the tokens
from which a document's rows were made. While the folder is unfinished, `done.npy` records which
blocks of documents are durable, `recall.npy` has what rounding keeps of the rankings, and
`kept.npy`, int64 (rows,), the row of an earlier folder that is taken over, -1 where none is.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.config.sets import OutputDtype
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.row_format import ROW_FORMATS, Floats, Rows

VECTORS = "embeddings.npy"
IDS = "ids.txt"
DOC_OFFSETS = "doc_offsets.npy"
DOC_HASHES = "doc_hashes.npy"
DONE = "done.npy"
RECALL = "recall.npy"
KEPT = "kept.npy"
UNFINISHED_ONLY = (DONE, RECALL, KEPT)
"""Files that are removed when the folder is published."""

RECALL_FIGURE = "recall_at_10_of_float32"
"""The name of the recall in the manifest's `stats`, if the vectors are rounded."""

BLOCK_DOCS = 16_384
"""Documents in a block: the unit of work, of resuming, of hashing and of memory."""

MOST_DOCS = 2**31 - 1
"""The most documents in a folder: positions have 32 bits in searches and in candidates."""

_HEADER_BYTES = 128
_DONE_DTYPE = np.dtype([("rows", "<i8"), ("xxh3", "<u8")])
_RECALL_DTYPE = np.dtype("<f8")

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_FALLOCATE = None
if sys.platform == "linux":
    _FALLOCATE = ctypes.CDLL(None).fallocate
    _FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_AGAIN = "make the embeddings again with: ance encode --force"
_RESTORE = "restore the file, or make the artifact again with --force"


def write_ids(path: Path, ids: Iterable[str]) -> int:
    """Write one id per line; returns their number."""
    count = 0
    with atomic.new_file(path) as handle:
        for name in ids:
            handle.write(f"{name}\n".encode())
            count += 1
    return count


def read_ids(path: Path) -> list[str]:
    """The ids that `write_ids` wrote."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="make the artifact again") from None
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: not valid UTF-8 ({error})",
            hint=_RESTORE,
        ) from error


def load_array(path: Path, mapped: bool = False) -> npt.NDArray[Any]:
    """Read a `.npy` file without unpickling; `mapped` maps it instead of reading it into memory."""
    try:
        array: npt.NDArray[Any] = np.load(
            path, mmap_mode="r" if mapped else None, allow_pickle=False
        )
        return array
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="make the artifact again") from None
    except (ValueError, EOFError, IsADirectoryError) as error:
        raise BadInput(
            f"{path}: not a complete .npy array ({error})",
            hint=_RESTORE,
        ) from error


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a `.npy` file whole or not at all."""
    with atomic.new_file(path) as handle:
        np.save(handle, array)


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """A version-1 .npy header of fixed size, so that it can be overwritten with another shape."""
    descr = np.lib.format.dtype_to_descr(dtype)
    described = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    padding = _HEADER_BYTES - 10 - len(described) - 1
    text = described + " " * padding + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


def _write_at(path: Path, offset: int, data: Any) -> None:
    """Write into the middle of a file, durably.

    `O_DSYNC` also keeps the clients of a network file system from writing back whole pages, which
    would overwrite what another host has written next to the data.
    """
    left = memoryview(data).cast("B")
    with atomic.disk_errors(path.parent):
        descriptor = os.open(path, os.O_WRONLY | os.O_DSYNC)
        try:
            at = offset
            while left:
                written = os.pwrite(descriptor, left, at)
                left, at = left[written:], at + written
        except OSError:  # an incomplete block should not take space from other processes
            _free_range(descriptor, offset, memoryview(data).nbytes)
            raise
        finally:
            os.close(descriptor)


def _free_range(descriptor: int, offset: int, length: int) -> None:
    """Punch a hole into a file, which keeps its size (Linux only)."""
    if _FALLOCATE is not None:
        _FALLOCATE(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


class EmbeddingsWriter:
    """Fills a partial embeddings folder block by block, from any number of processes.

    A block is `block_docs` consecutive documents. The document offsets say where the rows of a
    block begin, so any process can write any block; `done.npy` records the durable blocks.
    """

    def __init__(self, folder: Path, dim: int, dtype: OutputDtype, block_docs: int) -> None:
        """Open a folder that `begin` has prepared."""
        self.folder = folder
        self.dim = dim
        self.dtype = dtype
        self.format = ROW_FORMATS[dtype](dim)
        self.block_docs = block_docs
        offsets = load_array(folder / DOC_OFFSETS, mapped=True)
        self.num_docs = len(offsets) - 1
        self.num_blocks = -(-self.num_docs // block_docs)
        self._first_row = np.append(offsets[: self.num_docs : block_docs], offsets[-1])

    @classmethod
    def begin(
        cls,
        folder: Path,
        doc_offsets: npt.NDArray[np.int64],
        dim: int,
        dtype: OutputDtype,
        block_docs: int = BLOCK_DOCS,
    ) -> EmbeddingsWriter:
        """Open a folder, and prepare it first if it is new; one process at a time.

        `doc_offsets` (documents + 1,): the first row of each document. The matrix has its final
        size from the start.
        """
        if len(doc_offsets) - 1 > MOST_DOCS:
            raise UsageProblem(
                f"{folder}: {len(doc_offsets) - 1:,} documents; a folder holds at most "
                f"{MOST_DOCS:,}",
                hint="divide the corpus into several datasets",
            )
        num_blocks = -(-(len(doc_offsets) - 1) // block_docs)
        rows, stored = int(doc_offsets[-1]), ROW_FORMATS[dtype](dim)
        if not (folder / DONE).exists():
            fresh = np.zeros(num_blocks, _DONE_DTYPE)
            fresh["rows"] = -1
            with atomic.disk_errors(folder):
                save_array(folder / DOC_OFFSETS, doc_offsets)
                with atomic.new_file(folder / VECTORS) as handle:
                    header = npy_header((rows, *stored.row.shape), stored.row.base)
                    handle.write(header)
                    handle.truncate(len(header) + rows * stored.row.itemsize)
                if stored.rounds:
                    with atomic.new_file(folder / RECALL) as handle:
                        handle.write(npy_header((1,), _RECALL_DTYPE))
                        handle.write(bytes(_RECALL_DTYPE.itemsize))
                with atomic.new_file(folder / DONE) as handle:
                    handle.write(npy_header((num_blocks,), _DONE_DTYPE))
                    handle.write(fresh.tobytes())
            return cls(folder, dim, dtype, block_docs)
        found = cls(folder, dim, dtype, block_docs)
        found._forget_damaged()
        return found

    def _forget_damaged(self) -> None:
        """Mark the blocks whose vectors do not match their hash as missing."""
        row_bytes = self.format.row.itemsize
        with open(self.folder / VECTORS, "rb") as handle:
            for block, (rows, expected) in enumerate(self._done().tolist()):
                if rows < 0:
                    continue
                handle.seek(_HEADER_BYTES + int(self._first_row[block]) * row_bytes)
                if xxhash.xxh3_64_intdigest(handle.read(rows * row_bytes)) != expected:
                    self._note(block, -1, 0)

    def _note(self, block: int, rows: int, digest: int) -> None:
        entry = np.array((rows, digest), _DONE_DTYPE)
        offset = _HEADER_BYTES + block * _DONE_DTYPE.itemsize
        _write_at(self.folder / DONE, offset, entry.tobytes())

    def _done(self) -> npt.NDArray[Any]:
        """The current table of finished blocks, which other processes write to as well."""
        return load_array(self.folder / DONE)

    def is_done(self, block: int) -> bool:
        """Whether the block's vectors are durable."""
        return bool(self._done()["rows"][block] >= 0)

    def missing(self) -> list[int]:
        """The blocks that are not durable yet."""
        found: list[int] = np.flatnonzero(self._done()["rows"] < 0).tolist()
        return found

    def docs_of(self, block: int) -> range:
        """The positions of the block's documents."""
        start = block * self.block_docs
        return range(start, min(start + self.block_docs, self.num_docs))

    def rows_of(self, block: int) -> range:
        """The positions of the block's rows."""
        return range(*self._first_row[block : block + 2].tolist())

    def write_block(
        self,
        block: int,
        vectors: Floats,
        recall: float | None = None,
        kept: tuple[npt.NDArray[np.bool_], Rows] | None = None,
    ) -> None:
        """Store a block's vectors (rows x dim), durable before the block counts as done, and with
        the first block of rounded vectors the recall that was measured on it.

        `kept` has which rows of the block, if any, are stored already, and those rows: then
        `vectors` has the others.
        """
        place = self.rows_of(block)
        is_kept, kept_rows = kept or (np.zeros(len(place), np.bool_), None)
        expected = (int((~is_kept).sum()), self.dim)
        if vectors.shape != expected:
            raise ValueError(
                f"block {block} has vectors of shape {vectors.shape}, expected {expected}"
            )
        rows = self.format.stored(vectors)
        if not (np.isfinite(vectors).all() and np.isfinite(self.format.floats(rows)).all()):
            raise BadInput(
                f"block {block}: a vector is not finite, or has a component beyond the range of "
                f"{self.dtype}",
                hint="store the vectors with --output-dtype float32",
            )
        if recall is not None:
            _write_at(self.folder / RECALL, _HEADER_BYTES, np.array([recall], _RECALL_DTYPE))
        if kept_rows is not None:
            fresh, rows = rows, np.empty(len(place), self.format.row)
            rows[is_kept], rows[~is_kept] = kept_rows, fresh
        data = rows.view(np.uint8).data
        start = _HEADER_BYTES + place.start * self.format.row.itemsize
        _write_at(self.folder / VECTORS, start, data)
        self._note(block, len(rows), xxhash.xxh3_64_intdigest(data))

    @property
    def recall(self) -> float | None:
        """The recall that was measured on the first block, which is done; None if the vectors are
        not rounded."""
        return float(load_array(self.folder / RECALL)[0]) if self.format.rounds else None

    def finish(self, ids: Iterable[str]) -> dict[str, Any]:
        """Write the ids and return the manifest's `content`."""
        if self.missing() or write_ids(self.folder / IDS, ids) != self.num_docs:
            raise ValueError("not every block is done")
        parts = [name for name in _HASHED if (self.folder / name).exists()]
        return {
            "rows": int(self._first_row[-1]),
            "docs": self.num_docs,
            "dim": self.dim,
            "dtype": self.dtype,
            "block_docs": self.block_docs,
            "block_xxh3": [f"{value:016x}" for value in self._done()["xxh3"].tolist()],
            **{_hash_key(name): _hash_of(self.folder / name) for name in parts},
        }


_HASHED = (IDS, DOC_OFFSETS, DOC_HASHES)
"""Files whose hashes are in the manifest's `content`. Earlier versions did not note all of them."""


def _hash_key(name: str) -> str:
    return f"{Path(name).stem}_xxh3"


def _hash_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, xxhash.xxh3_64).hexdigest()


class StoredVectors:
    """The vectors of published embeddings without their ids, read block by block on request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, "embeddings")
        content = self.manifest["content"]
        self.vectors = load_array(folder / VECTORS, mapped=True)
        """The rows as they are stored, memory-mapped. `rows` and `blocks` give floats."""
        self._checked: set[int] = set()
        self.doc_offsets: npt.NDArray[np.int64] = load_array(folder / DOC_OFFSETS)
        try:
            self._format = ROW_FORMATS[content["dtype"]](content["dim"])
        except ValueError:
            raise BadInput(
                f"{folder}: {content['dim']} dimensions: the manifest was edited", hint=_AGAIN
            ) from None
        row = self._format.row
        expected = (content["rows"], *row.shape)
        if self.vectors.shape != expected or self.vectors.dtype != row.base:
            raise Mismatch(
                f"{folder / VECTORS}: has shape {self.vectors.shape} and dtype "
                f"{self.vectors.dtype}, expected {expected} and {row.base} (the manifest)",
                hint=_AGAIN,
            )
        docs = content["docs"]
        if self.doc_offsets.shape != (docs + 1,):
            raise BadInput(
                f"{folder / DOC_OFFSETS}: has shape {self.doc_offsets.shape}, expected "
                f"({docs + 1},) (the manifest)",
                hint=_AGAIN,
            )
        covered = self.doc_offsets[0] == 0 and self.doc_offsets[-1] == content["rows"]
        if not covered or (np.diff(self.doc_offsets) < 0).any():
            raise BadInput(
                f"{folder / DOC_OFFSETS}: does not cover the {content['rows']} rows", hint=_AGAIN
            )
        num_blocks, block_docs = len(content["block_xxh3"]), content["block_docs"]
        if block_docs < 1 or num_blocks != -(-docs // block_docs):
            raise BadInput(
                f"{folder}: {num_blocks} blocks of {block_docs} do not hold {docs} documents: the "
                "manifest was edited",
                hint=_AGAIN,
            )
        self._check_hash(DOC_OFFSETS)

    def _check_hash(self, name: str) -> None:
        """Compare a file with its hash in the manifest; earlier versions did not note all."""
        noted = self.manifest["content"].get(_hash_key(name))
        if noted and noted != _hash_of(self.folder / name):
            raise BadInput(
                f"{self.folder / name}: is damaged: its hash differs from the one in the manifest",
                hint=_AGAIN,
            )

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def num_docs(self) -> int:
        return len(self.doc_offsets) - 1

    @property
    def num_rows(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def dim(self) -> int:
        return int(self.manifest["content"]["dim"])

    @property
    def tower(self) -> str:
        """Hash of the tower that made the vectors."""
        return str(self.manifest["inputs"]["tower"])

    @property
    def max_segments(self) -> int:
        """The largest number of rows of a document."""
        return int(np.diff(self.doc_offsets).max())

    def doc_of_row(self) -> npt.NDArray[np.int32]:
        """(rows,) document position of each row."""
        counts = np.diff(self.doc_offsets)
        return np.repeat(np.arange(self.num_docs, dtype=np.int32), counts)

    def first_rows(self) -> npt.NDArray[np.int64]:
        """(blocks + 1,) the first row of each block, and the number of rows."""
        starts = self.doc_offsets[: self.num_docs : self.manifest["content"]["block_docs"]]
        return np.append(starts, self.doc_offsets[-1])

    @property
    def recall(self) -> float | None:
        """What rounding keeps of the rankings; None if the vectors are not rounded."""
        found: float | None = self.manifest["stats"].get(RECALL_FIGURE)
        return found

    def need_doc_hashes(self) -> None:
        """Raises `Mismatch` if a version that did not note `doc_hashes` made the folder."""
        if _hash_key(DOC_HASHES) not in self.manifest["content"]:
            raise Mismatch(
                f"{self.folder}: was made by a version of ance that did not note of which texts "
                "the vectors are",
                hint="encode it once more with --force instead of --append; from then on --append "
                "works",
            )

    def doc_hashes(self) -> npt.NDArray[np.uint64]:
        """(documents,) the hash of the tokens from which each document's rows were made."""
        self.need_doc_hashes()
        self._check_hash(DOC_HASHES)
        return load_array(self.folder / DOC_HASHES)

    def rows(self, positions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """(positions, dim) the vectors that some rows stand for; raises as `stored` does."""
        return np.asarray(self._format.floats(self.stored(positions)), np.float32)

    def stored(self, positions: npt.NDArray[np.integer[Any]]) -> Rows:
        """(positions,) some rows as they are stored.

        Raises `BadInput` if the hash of a block that has one of them is wrong. A block is read once
        for that by each reader of the folder, however often its rows are asked for.
        """
        if len(self._checked) < len(self.manifest["content"]["block_xxh3"]):
            holding = np.searchsorted(self.first_rows()[1:-1], positions, "right")
            for block in set(holding.tolist()) - self._checked:
                for _ in self.blocks(range(block, block + 1)):
                    pass
        found: Rows = self.vectors[positions]
        return found

    def blocks(self, which: range | None = None) -> Iterator[tuple[int, Floats]]:
        """(first row, vectors) of each block, or of the blocks in `which`.

        The vectors are float16 if they are stored so, and float32 otherwise. Raises `BadInput` if
        the hash of a block is wrong.
        """
        hashes = self.manifest["content"]["block_xxh3"]
        first_rows = self.first_rows()
        for block in range(len(hashes)) if which is None else which:
            first, last = first_rows[block : block + 2].tolist()
            data = np.ascontiguousarray(self.vectors[first:last])
            if f"{xxhash.xxh3_64_intdigest(data.view(np.uint8).data):016x}" != hashes[block]:
                raise BadInput(
                    f"{self.folder / VECTORS}: block {block} (rows {first} to {last}) is damaged: "
                    "its hash differs from the one in the manifest",
                    hint=_AGAIN,
                )
            self._checked.add(block)
            yield first, self._format.floats(data)


class Embeddings(StoredVectors):
    """Published embeddings, opened for reading, with the ids of their documents."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ids = read_ids(folder / IDS)
        if len(self.ids) != self.num_docs:
            raise BadInput(
                f"{folder / IDS}: has {len(self.ids)} ids, expected {self.num_docs} (the manifest)",
                hint=_AGAIN,
            )
        self._check_hash(IDS)
