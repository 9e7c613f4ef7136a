"""Embeddings read ahead of a search: several blocks at a time, straight onto each device.

While one chunk is searched, a thread reads, checks and converts the next one: two chunks are in
memory, however large the corpus is. Neither a block nor the rows of a document are divided.
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.row_format import Floats

CHUNK_ROWS = 131_072
CHUNK_BYTES = 256 << 20
"""Each chunk has a top-k of its own. With 16k rows that costs a quarter of the time of the product
at 384 dimensions, with 65k rows 5 %."""


@dataclass(frozen=True)
class Chunk:
    """Whole documents: `starts` (docs + 1,) int64 are their rows, counted from `first_row`;
    `on[i]` (rows, d) are the vectors on the i-th device."""

    first_doc: int
    first_row: int
    starts: Tensor
    on: list[Tensor]

    def __len__(self) -> int:
        return int(self.starts[-1])


def _chunks_of(embeddings: Embeddings, dtype: torch.dtype) -> list[range]:
    """The blocks of each chunk: as many as fit, at least one."""
    room, first_rows = _rows_of(embeddings, dtype), embeddings.first_rows().tolist()
    chunks: list[range] = []
    for block in range(len(first_rows) - 1):
        if chunks and first_rows[block + 1] - first_rows[chunks[-1].start] <= room:
            chunks[-1] = range(chunks[-1].start, block + 1)
        else:
            chunks.append(range(block, block + 1))
    return chunks


def _rows_of(embeddings: Embeddings, dtype: torch.dtype) -> int:
    rows = min(CHUNK_ROWS, CHUNK_BYTES // (embeddings.dim * dtype.itemsize))
    return min(rows, embeddings.num_rows)


def read_ahead(
    embeddings: Embeddings, devices: Sequence[torch.device], dtype: torch.dtype
) -> Generator[Chunk]:
    """The corpus in chunks of `dtype`, in order, on every device.

    The memory of a chunk is used again for the chunk after the next. The caller must be done with a
    chunk, and have synchronised its device, before it asks for another. Damaged blocks raise
    `BadInput`.
    """
    reader = _Reader(embeddings, devices, dtype)
    threads = torch.get_num_threads()
    # One thread converts at the speed of memory. If it had OpenMP threads of its own, the process
    # would have more threads than cores, and OpenMP would let the searching threads sleep at each
    # barrier, which costs a quarter of the time of a long search.
    with ThreadPoolExecutor(1, "read-ahead", torch.set_num_threads, (1,)) as thread:
        coming = thread.submit(reader.read, 0)
        for parity in _alternating():
            try:
                chunk = coming.result()
            finally:
                torch.set_num_threads(threads)  # new threads inherit this
            if chunk is None:
                return
            coming = thread.submit(reader.read, parity)
            yield chunk


def _alternating() -> Iterator[int]:
    while True:
        yield 1
        yield 0


class _Reader:
    """Fills one of two sets of buffers with the next chunk."""

    def __init__(
        self, embeddings: Embeddings, devices: Sequence[torch.device], dtype: torch.dtype
    ) -> None:
        self._embeddings = embeddings
        self._chunks = iter(_chunks_of(embeddings, dtype))
        self._first_rows = embeddings.first_rows()
        self._devices = devices
        self._dtype = dtype
        self._rows = _rows_of(embeddings, dtype)
        self._buffers: list[list[Tensor]] = [[], []]
        self._pinned: Tensor | None = None
        # separate streams, so that the copies do not wait for the search of the previous chunk
        self._streams = {
            device: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for device in devices
            if device.type == "cuda"
        }

    def read(self, parity: int) -> Chunk | None:
        """The next chunk, in the buffers of this parity; None at the end."""
        blocks = next(self._chunks, None)
        if blocks is None:
            return None
        first_row, end_row = self._first_rows[[blocks.start, blocks.stop]].tolist()
        on_host, on_devices = self._room_for(max(self._rows, end_row - first_row), parity)
        taken = 0
        for _, block in self._embeddings.blocks(blocks):
            on_host[taken : taken + len(block)].copy_(_tensor_of(block))
            taken += len(block)
            _drop_pages(self._embeddings.vectors)
        vectors = [buffer[:taken] for buffer in on_devices]
        for device, target in zip(self._devices, vectors, strict=True):
            if device in self._streams:
                with torch.cuda.stream(self._streams[device]):
                    target.copy_(on_host[:taken], non_blocking=True)
        for stream in self._streams.values():
            stream.synchronize()
        offsets = self._embeddings.doc_offsets
        first_doc, end = np.searchsorted(offsets, [first_row, first_row + taken])
        starts = torch.from_numpy(offsets[first_doc : end + 1] - first_row)
        return Chunk(int(first_doc), first_row, starts, vectors)

    def _room_for(self, rows: int, parity: int) -> tuple[Tensor, list[Tensor]]:
        """The buffer that blocks are read into, and the buffer of each device; on a CPU they are
        one."""
        shape = (rows, self._embeddings.dim)
        buffers = self._buffers[parity]
        if not buffers or len(buffers[0]) < rows:
            made = {
                device: _empty(shape, self._dtype, device)
                for device in dict.fromkeys(self._devices)
            }
            buffers = self._buffers[parity] = [made[device] for device in self._devices]
            for device, stream in self._streams.items():
                # it may be memory that the search of the previous chunk freed and still works on
                stream.wait_stream(torch.cuda.current_stream(device))
        if not self._streams:
            return buffers[0], buffers
        if self._pinned is None or len(self._pinned) < rows:
            self._pinned = torch.empty(shape, dtype=self._dtype, pin_memory=True)
        return self._pinned, buffers


def _empty(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # numpy asks the kernel for huge pages and torch does not; touching small pages for the first
    # time takes half as long as reading a chunk
    return torch.from_numpy(np.empty(shape, np.float32 if dtype == torch.float32 else np.float16))


def _tensor_of(block: Floats) -> Tensor:
    """The block as a tensor, without a copy. torch would warn about the read-only memory, which is
    only read here."""
    interface = {**block.__array_interface__, "data": (block.ctypes.data, False)}
    view = SimpleNamespace(__array_interface__=interface, owner=block)
    return torch.from_numpy(np.asarray(view))


def _drop_pages(vectors: Floats) -> None:
    """Release the pages of the memory map that were read. Otherwise they count as this process's
    memory, which would grow with the corpus."""
    mapped = getattr(vectors, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
