"""Embeddings on disk: a folder with a memory-mapped matrix that grows in resumable blocks.

`embeddings.npy` (rows x dim, float16 or float32, C order), `ids.txt` (one id a line, one for each
document), `doc_offsets.npy` (int64, documents + 1): document i owns the rows
`doc_offsets[i]:doc_offsets[i + 1]`, one for FirstP, up to `max_segments` adjacent ones for MaxP.
While unfinished, `done.npy` tells which blocks of documents are durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.manifest import read_manifest

VECTORS = "embeddings.npy"
IDS = "ids.txt"
DOC_OFFSETS = "doc_offsets.npy"
DONE = "done.npy"
ROW_COUNTS = "row_counts.npy"
UNFINISHED_ONLY = (DONE, ROW_COUNTS)
"""What a folder holds only until it is published."""

BLOCK_DOCS = 16_384
"""Documents in a block: the unit of resuming, of hashing and of memory."""

_HEADER_BYTES = 128
_DONE_DTYPE = np.dtype([("rows", "<i8"), ("xxh3", "<u8")])

Floats = npt.NDArray[np.floating[Any]]


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """One id a line."""
    with atomic.new_file(path) as handle:
        handle.write("".join(f"{name}\n" for name in ids).encode())


def read_ids(path: Path) -> list[str]:
    """The ids that `write_ids` wrote."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="make the artifact again") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not valid UTF-8 ({error})") from error


def load_array(path: Path, mapped: bool = False) -> npt.NDArray[Any]:
    """A `.npy` file, never unpickled; `mapped` leaves it on disk."""
    try:
        array: npt.NDArray[Any] = np.load(
            path, mmap_mode="r" if mapped else None, allow_pickle=False
        )
        return array
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file", hint="make the artifact again") from None
    except (ValueError, EOFError) as error:
        raise BadInput(f"{path}: not a whole .npy array ({error})") from error


def _npy_header(rows: int, dim: int, dtype: np.dtype[Any]) -> bytes:
    """A version-1 .npy header of fixed size, so that the row count can be set at the end."""
    described = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    padding = _HEADER_BYTES - 10 - len(described) - 1
    text = described + " " * padding + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


class EmbeddingsWriter:
    """Fills a partial embeddings folder block by block; killed and reopened, it goes on.

    A block is `BLOCK_DOCS` consecutive documents. Blocks are visited in order, since the row at
    which a block begins is the sum of the rows before it; a block already done is passed over.
    """

    def __init__(self, folder: Path, num_docs: int, dim: int, dtype: str, block_docs: int) -> None:
        self.folder = folder
        self.num_docs = num_docs
        self.dim = dim
        self.dtype = np.dtype(dtype)
        self.block_docs = block_docs
        self.num_blocks = -(-num_docs // block_docs)
        done_path = folder / DONE
        if not done_path.exists() or not (folder / VECTORS).exists():
            fresh = np.zeros(self.num_blocks, _DONE_DTYPE)
            fresh["rows"] = -1
            with atomic.disk_errors(folder):
                (folder / VECTORS).write_bytes(_npy_header(0, dim, self.dtype))
                with atomic.new_file(done_path) as handle:
                    np.save(handle, fresh)
        self._done = np.load(done_path, mmap_mode="r+", allow_pickle=False)
        if not (folder / ROW_COUNTS).exists():
            with atomic.new_file(folder / ROW_COUNTS) as handle:
                np.save(handle, np.zeros(num_docs, np.int32))
        self._counts = np.load(folder / ROW_COUNTS, mmap_mode="r+", allow_pickle=False)
        self._forget_damaged()

    def _forget_damaged(self) -> None:
        """Count a block whose vectors are not those that were written as undone, with all after
        it."""
        first = 0
        with open(self.folder / VECTORS, "rb") as handle:
            handle.seek(_HEADER_BYTES)
            while first < self.num_done:
                rows, expected = self._done[first].tolist()
                data = handle.read(rows * self.dim * self.dtype.itemsize)
                if xxhash.xxh3_64_intdigest(data) != expected:
                    self._done["rows"][first:] = -1
                    self._done.flush()
                first += 1

    def is_done(self, block: int) -> bool:
        """Whether the block's vectors are durable."""
        return bool(self._done["rows"][block] >= 0)

    @property
    def num_done(self) -> int:
        """How many blocks are durable."""
        return int((self._done["rows"] >= 0).sum())

    def docs_of(self, block: int) -> range:
        """The positions of the block's documents."""
        start = block * self.block_docs
        return range(start, min(start + self.block_docs, self.num_docs))

    def write_block(self, block: int, vectors: Floats, row_counts: npt.NDArray[np.int32]) -> None:
        """Store a block's vectors (rows x dim) and how many rows each of its documents has.

        The vectors are durable before the block counts as done.
        """
        before = self._done["rows"][:block]
        if (before < 0).any():
            raise ValueError("blocks are written in order")
        first_row = int(before.sum())
        data = np.ascontiguousarray(vectors, self.dtype)
        if not np.isfinite(data).all():
            raise BadInput(
                f"block {block}: a vector is not finite, or has a component beyond the range of "
                f"{self.dtype.name}",
                hint="store the vectors with --output-dtype float32",
            )
        docs = self.docs_of(block)
        with atomic.disk_errors(self.folder):
            start = _HEADER_BYTES + first_row * self.dim * self.dtype.itemsize
            try:
                with open(self.folder / VECTORS, "r+b") as handle:
                    handle.seek(start)
                    handle.write(data.data)
                    handle.flush()
                    os.fsync(handle.fileno())
            except OSError:
                os.truncate(self.folder / VECTORS, start)  # others need the room of half a block
                raise
            self._counts[docs.start : docs.stop] = row_counts
            self._counts.flush()
            self._done[block] = (len(data), xxhash.xxh3_64_intdigest(data.data))
            self._done.flush()

    def finish(self, ids: Sequence[str]) -> dict[str, Any]:
        """Write ids and offsets, set the row count, and return the manifest's `content`."""
        if self.num_done != self.num_blocks or len(ids) != self.num_docs:
            raise ValueError("not every block is done")
        offsets = np.zeros(self.num_docs + 1, np.int64)
        np.cumsum(self._counts, out=offsets[1:])
        rows = int(offsets[-1])
        with atomic.disk_errors(self.folder):
            with open(self.folder / VECTORS, "r+b") as handle:
                handle.write(_npy_header(rows, self.dim, self.dtype))
                handle.truncate(_HEADER_BYTES + rows * self.dim * self.dtype.itemsize)
                handle.flush()
                os.fsync(handle.fileno())
            with atomic.new_file(self.folder / DOC_OFFSETS) as handle:
                np.save(handle, offsets)
            write_ids(self.folder / IDS, ids)
        content = {
            "rows": rows,
            "docs": self.num_docs,
            "dim": self.dim,
            "dtype": self.dtype.name,
            "block_docs": self.block_docs,
            "block_xxh3": [f"{value:016x}" for value in self._done["xxh3"].tolist()],
        }
        return content


class Embeddings:
    """Published embeddings, opened for reading; nothing is read until a block is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, "embeddings")
        content = self.manifest["content"]
        self.vectors = load_array(folder / VECTORS, mapped=True)
        self.ids = read_ids(folder / IDS)
        self.doc_offsets: npt.NDArray[np.int64] = load_array(folder / DOC_OFFSETS)
        expected = (content["rows"], content["dim"])
        if self.vectors.shape != expected or self.vectors.dtype.name != content["dtype"]:
            raise Mismatch(
                f"{folder / VECTORS}: holds {self.vectors.shape} {self.vectors.dtype}, "
                f"the manifest says {expected} {content['dtype']}",
                hint="make the embeddings again with: ance encode --force",
            )
        if len(self.ids) != content["docs"] or len(self.doc_offsets) != len(self.ids) + 1:
            raise BadInput(
                f"{folder / IDS}: {len(self.ids)} ids for {content['docs']} documents: "
                "rows and ids disagree",
                hint="make the embeddings again with: ance encode --force",
            )
        if self.doc_offsets[0] != 0 or self.doc_offsets[-1] != content["rows"]:
            raise BadInput(f"{folder / DOC_OFFSETS}: does not cover the {content['rows']} rows")

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def num_docs(self) -> int:
        return len(self.ids)

    @property
    def num_rows(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def tower(self) -> str:
        """Hash of the tower that made the vectors."""
        return str(self.manifest["inputs"]["tower"])

    @property
    def max_segments(self) -> int:
        """The most rows that one document has."""
        return int(np.diff(self.doc_offsets).max())

    def doc_of_row(self) -> npt.NDArray[np.int32]:
        """(rows,) document position of each row."""
        counts = np.diff(self.doc_offsets)
        return np.repeat(np.arange(self.num_docs, dtype=np.int32), counts)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """(first row, vectors) of each block, its hash checked as it is read."""
        content = self.manifest["content"]
        for block, expected in enumerate(content["block_xxh3"]):
            start = block * content["block_docs"]
            stop = min(start + content["block_docs"], self.num_docs)
            first, last = int(self.doc_offsets[start]), int(self.doc_offsets[stop])
            data = np.ascontiguousarray(self.vectors[first:last])
            if f"{xxhash.xxh3_64_intdigest(data.data):016x}" != expected:
                raise BadInput(
                    f"{self.folder / VECTORS}: block {block} (rows {first} to {last}) is damaged: "
                    "its hash is not the one in the manifest",
                    hint="make the embeddings again with: ance encode --force",
                )
            yield first, data
