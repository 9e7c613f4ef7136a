"""The token cache: a corpus as ragged rows of token ids, written in one pass and read in blocks.

`tokens.npy` (1-D, uint16 or uint32) has the tokens of all rows, `offsets.npy` (int64, rows + 1) the
start of each row, `doc_offsets.npy` (int64, documents + 1) the first row of each document, and
`ids.txt` one document id per line. A block is a number of consecutive documents; its hash covers
its part of the three arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.errors import BadInput
from ance_cli.formats.embeddings import DOC_OFFSETS, IDS, load_array, npy_header
from ance_cli.formats.manifest import check_files, read_manifest

KIND = "tokens"
TOKENS = "tokens.npy"
OFFSETS = "offsets.npy"

_AGAIN = "make it again with: ance tokenize --force, or remove the folder"

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenRows:
    """Ragged rows of token ids.

    `ids` (tokens,) integers; `offsets` (rows + 1,) int64; `row_counts` (texts,) int32: the number
    of adjacent rows of each text (1 for queries and FirstP, up to `max_segments` for MaxP).
    """

    ids: Ids
    offsets: npt.NDArray[np.int64]
    row_counts: npt.NDArray[np.int32]

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """(texts,) the first row of each text."""
        return np.cumsum(self.row_counts, dtype=np.int64) - self.row_counts

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) the number of tokens of each row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> Ids:
        """The token ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def padded(
        self, rows: Sequence[int] | npt.NDArray[np.int64], pad_id: int, multiple: int = 8
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token ids and attention mask of the chosen rows, both (rows, width) int64.

        The width is that of the longest row, rounded up to a multiple, so that few shapes occur.
        """
        chosen = np.asarray(rows)
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        width = -(-int(lengths.max()) // multiple) * multiple
        column = np.arange(width)
        inside = column < lengths[:, None]
        token_ids = np.full(inside.shape, pad_id, np.int64)
        token_ids[inside] = self.ids[(starts[:, None] + column)[inside]]
        return token_ids, inside.astype(np.int64)

    def of_texts(self, texts: npt.NDArray[np.int64]) -> TokenRows:
        """The rows of the given texts, in the given order."""
        counts = self.row_counts[texts]
        first = np.cumsum(counts, dtype=np.int64) - counts
        rows = np.repeat(self.starts[texts] - first, counts) + np.arange(int(counts.sum()))
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        tokens = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenRows(self.ids[tokens], offsets, counts)


def doc_hashes(rows: TokenRows) -> npt.NDArray[np.uint64]:
    """(texts,) XXH3 of each text's tokens, in rows of the lengths that they have."""
    tokens = np.ascontiguousarray(rows.ids).view(np.uint8).data
    lengths = np.ascontiguousarray(rows.lengths).view(np.uint8).data
    first = np.append(rows.starts, rows.num_rows)
    token_ends = (rows.offsets[first] * rows.ids.itemsize).tolist()
    length_ends = (first * rows.lengths.itemsize).tolist()
    hashes = (
        xxhash.xxh3_64_intdigest(b"".join((lengths[slice(*row)], tokens[slice(*token)])))
        for row, token in zip(pairwise(length_ends), pairwise(token_ends), strict=True)
    )
    return np.fromiter(hashes, np.uint64, len(rows.row_counts))


def join_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """Join several `TokenRows` into one, in order."""
    if not parts:
        return TokenRows(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32))
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TokenRows(
        np.concatenate([part.ids for part in parts]),
        offsets,
        np.concatenate([part.row_counts for part in parts]),
    )


def _block_hash(ids: Ids, offsets: Ids, doc_offsets: Ids) -> str:
    """Hash of a block's tokens and of both kinds of offsets, including the ends of the block."""
    state = xxhash.xxh3_64()
    for array in (ids, offsets, doc_offsets):
        state.update(np.ascontiguousarray(array).data)
    return str(state.hexdigest())


class _GrowingArray:
    """A 1-D `.npy` file whose length is only known at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.length = 0
        self._handle: IO[bytes] = open(path, "wb")
        self._handle.write(npy_header((0,), dtype))

    def append(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        data = np.ascontiguousarray(values, self.dtype)
        self._handle.write(data.data)
        self.length += len(data)
        return data

    def close(self) -> None:
        self._handle.seek(0)
        self._handle.write(npy_header((self.length,), self.dtype))
        self._handle.close()


class TokenWriter:
    """Writes a token cache block by block into a partial folder.

    Every block except the last has `block_docs` documents. `vocabulary` is the number of token ids,
    which determines their dtype.
    """

    def __init__(self, folder: Path, vocabulary: int, block_docs: int) -> None:
        self._block_docs = block_docs
        self._tokens = _GrowingArray(
            folder / TOKENS, np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
        )
        self._offsets = _GrowingArray(folder / OFFSETS, np.dtype("<i8"))
        self._doc_offsets = _GrowingArray(folder / DOC_OFFSETS, np.dtype("<i8"))
        self._offsets.append(np.zeros(1))
        self._doc_offsets.append(np.zeros(1))
        self._ids = open(folder / IDS, "wb")
        self._ids_hash = xxhash.xxh3_64()
        self._hashes: list[str] = []

    def write_block(self, doc_ids: Sequence[str], rows: TokenRows) -> None:
        """Append the next block: the rows of its documents."""
        if len(rows.row_counts) != len(doc_ids):
            raise ValueError("the numbers of texts and ids differ")
        if self._doc_offsets.length - 1 != len(self._hashes) * self._block_docs:
            raise ValueError("only the last block may be short")
        offsets = rows.offsets + self._tokens.length
        doc_offsets = np.zeros(len(doc_ids) + 1, np.int64)
        np.cumsum(rows.row_counts, out=doc_offsets[1:])
        doc_offsets += self._offsets.length - 1
        tokens = self._tokens.append(rows.ids)
        self._offsets.append(offsets[1:])
        self._doc_offsets.append(doc_offsets[1:])
        names = "".join(f"{name}\n" for name in doc_ids).encode()
        self._ids.write(names)
        self._ids_hash.update(names)
        self._hashes.append(_block_hash(tokens, offsets, doc_offsets))

    def finish(self) -> dict[str, Any]:
        """Close the files; returns the manifest's `content`."""
        for array in (self._tokens, self._offsets, self._doc_offsets):
            array.close()
        self._ids.close()
        return {
            "docs": self._doc_offsets.length - 1,
            "rows": self._offsets.length - 1,
            "tokens": self._tokens.length,
            "dtype": self._tokens.dtype.name,
            "block_docs": self._block_docs,
            "block_xxh3": self._hashes,
            "ids_xxh3": self._ids_hash.hexdigest(),
        }


class TokenCache:
    """A published token cache.

    Blocks are read one at a time and not kept, so that memory does not grow with the corpus.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `Mismatch` or `BadInput` if the folder is not a complete token cache."""
        self.folder = folder
        self.manifest = read_manifest(folder, KIND)
        content = self.manifest["content"]
        self.num_docs, self.num_rows = int(content["docs"]), int(content["rows"])
        self.num_tokens = int(content["tokens"])
        self.num_cut = int(self.manifest["stats"].get("cut", 0))
        """Texts that were cut to their length; version 0.1.0 did not count them."""
        self.block_docs = int(content["block_docs"])
        self.num_blocks = len(content["block_xxh3"])
        for name, length in (
            (TOKENS, self.num_tokens),
            (OFFSETS, self.num_rows + 1),
            (DOC_OFFSETS, self.num_docs + 1),
        ):
            found = load_array(folder / name, mapped=True).shape
            if found != (length,):
                raise BadInput(
                    f"{folder / name}: has shape {found}, expected ({length},) (the manifest)",
                    hint=_AGAIN,
                )

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def doc_offsets(self) -> npt.NDArray[np.int64]:
        """(documents + 1,) the first row of each document, memory-mapped."""
        check_files(self.folder, self.manifest, _AGAIN)
        return load_array(self.folder / DOC_OFFSETS, mapped=True)

    @property
    def block_tokens(self) -> npt.NDArray[np.int64]:
        """(blocks,) the number of tokens of each block."""
        starts = np.append(self.doc_offsets[: self.num_docs : self.block_docs], self.num_rows)
        offsets: npt.NDArray[np.int64] = load_array(self.folder / OFFSETS, mapped=True)[starts]
        return np.diff(offsets)

    def docs_of(self, block: int) -> range:
        """The positions of the block's documents."""
        start = block * self.block_docs
        return range(start, min(start + self.block_docs, self.num_docs))

    def block(self, block: int) -> TokenRows:
        """Read the rows of a block's documents; `BadInput` if the block's hash is wrong."""
        docs = self.docs_of(block)
        doc_offsets = self._part(DOC_OFFSETS, docs.start, docs.stop + 1)
        first, last = int(doc_offsets[0]), int(doc_offsets[-1])
        if 0 <= first <= last <= self.num_rows:
            offsets = self._part(OFFSETS, first, last + 1)
            ids = self._part(TOKENS, int(offsets[0]), int(offsets[-1]))
            expected = self.manifest["content"]["block_xxh3"][block]
            if _block_hash(ids, offsets, doc_offsets) == expected:
                counts = np.diff(doc_offsets).astype(np.int32)
                return TokenRows(ids, offsets - offsets[0], counts)
        raise BadInput(
            f"{self.folder}: block {block} (documents {docs.start} to {docs.stop}) is damaged: "
            "its hash differs from the one in the manifest",
            hint=_AGAIN,
        )

    def _part(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        # mapped for each call: the pages of a map that stays open would add up to the whole file
        return np.array(load_array(self.folder / name, mapped=True)[start:stop])

    def doc_ids(self) -> Iterator[str]:
        """Yield the document ids in corpus order; `BadInput` at the end if their hash is wrong."""
        state = xxhash.xxh3_64()
        with open(self.folder / IDS, "rb") as handle:
            for line in handle:
                state.update(line)
                yield line[:-1].decode("utf-8", "replace")
        if state.hexdigest() != self.manifest["content"]["ids_xxh3"]:
            raise BadInput(
                f"{self.folder / IDS}: is damaged: its hash differs from the one in the manifest",
                hint=_AGAIN,
            )

    def doc_hashes(self) -> npt.NDArray[np.uint64]:
        """(documents,) the hash of each document's tokens; raises as `block` does."""
        return np.concatenate([doc_hashes(self.block(block)) for block in range(self.num_blocks)])

    def rows_of(self, positions: npt.NDArray[np.int64]) -> TokenRows:
        """The rows of the documents at these positions in the corpus, which are sorted."""
        block_of = positions // self.block_docs
        parts = []
        for inside in np.split(positions, np.flatnonzero(np.diff(block_of)) + 1):
            if len(inside):
                block = int(inside[0]) // self.block_docs
                parts.append(self.block(block).of_texts(inside - block * self.block_docs))
        return join_rows(parts)
