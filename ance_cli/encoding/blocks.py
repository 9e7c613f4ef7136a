"""The worker's part of encoding: blocks of a token cache to blocks of an embeddings folder.

A block's vectors depend on the block, the tower and the number format alone. Any process may encode
any block at any time. The rows that an earlier folder has of a block's documents are copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import orjson
import torch

from ance_cli.config import EncodeConfig
from ance_cli.encoding.recall import recall_of_floats
from ance_cli.errors import BadInput
from ance_cli.formats.embeddings import KEPT, EmbeddingsWriter, StoredVectors, load_array
from ance_cli.formats.records import parse_record
from ance_cli.formats.tokens import TokenCache, TokenRows
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings
from ance_cli.models.devices import choose_dtype, torch_dtype
from ance_cli.models.encoder import load_encoder
from ance_cli.models.flops import forward_flops, matmul_ceiling
from ance_cli.models.inference import BatchSize, InferenceEngine

_CEILING_AFTER_SECONDS = 10.0
"""The speed of matrix products is measured only after an encoding that took longer than this."""


@dataclass(frozen=True)
class EncodeJob:
    """Everything that a process has to know to encode blocks; it travels as one line of JSON."""

    checkpoint: str
    settings: EncodingSettings
    tokens: str
    """Folder of the token cache."""
    folder: str
    """Partial embeddings folder."""
    config: EncodeConfig
    """With `dtype` resolved."""
    device: str
    pad_id: int
    earlier: str | None = None
    """Embeddings folder of which rows are copied."""

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> EncodeJob:
        return parse_record(text, cls, "the job of an encoding worker")


@dataclass
class Work:
    """What was done: sums over blocks."""

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    packed_rows: int = 0
    """Rows whose batches had no padding."""
    flops: int = 0
    """FLOPs of the forward passes, including padding."""
    capacity: float = 0.0
    """FLOPs that large matrix products could have done in the same time; 0 = not measured."""

    def add(self, other: Work) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Listener(Protocol):
    """Receives the progress of an encoding."""

    def say(self, text: str) -> None: ...

    def encoded(self, block: int, tokens: int) -> None:
        """Called when `tokens` more tokens of a block are encoded."""

    def finished(self, block: int, work: Work) -> None:
        """Called when a block is durable, from another thread than the other methods."""


def encode_here(job: EncodeJob, blocks: Iterable[int], listener: Listener) -> float:
    """Encode the blocks in this process; returns what `BlockEncoder.run` returns."""
    remaining = iter(blocks)
    return BlockEncoder(job, listener).run(lambda: next(remaining, None))


class BlockEncoder:
    """An encoder on one device, the token cache it reads and the embeddings it writes."""

    def __init__(self, job: EncodeJob, listener: Listener) -> None:
        checkpoint = Checkpoint(Path(job.checkpoint))
        checkpoint.settings = job.settings
        self._shown = checkpoint.shown
        self._device = torch.device(job.device)
        self._listener = listener
        self._tokens = TokenCache(Path(job.tokens))
        dtype = torch_dtype(choose_dtype(job.config.dtype, self._device))
        encoder = load_encoder(checkpoint, job.config.side, dtype)
        self._backbone = encoder.backbone
        self._engine = InferenceEngine(
            encoder, job.pad_id, [self._device], job.config, listener.say
        )
        self._writer = EmbeddingsWriter(
            Path(job.folder), self._engine.dim, job.config.output_dtype, self._tokens.block_docs
        )
        self._earlier = StoredVectors(Path(job.earlier)) if job.earlier else None

    def run(self, next_block: Callable[[], int | None]) -> float:
        """Encode the blocks that `next_block` returns until it returns None.

        A block is written while the next one is encoded. Returns the FLOPs that the device could
        have done in the same time, 0 if that was not measured. Raises `BadInput` if a vector is not
        finite.
        """
        started = time.monotonic()
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as disk:
            while (block := next_block()) is not None:
                rows = self._tokens.block(block)
                kept = self._kept(block, rows)
                vectors, work = self._encode(block, rows, kept)
                if writing:
                    writing.result()
                writing = disk.submit(self._write, block, vectors, kept, work)
            if writing:
                writing.result()
        seconds = time.monotonic() - started
        if seconds < _CEILING_AFTER_SECONDS:
            return 0.0
        return seconds * matmul_ceiling(self._device, self._engine.dtype)

    def _kept(self, block: int, rows: TokenRows) -> npt.NDArray[np.int64]:
        """(rows,) the earlier folder's row for each row of a block, -1 = none."""
        if self._earlier is None:
            return np.full(rows.num_rows, -1)
        place = self._writer.rows_of(block)
        kept = load_array(self._writer.folder / KEPT, mapped=True)
        return np.array(kept[place.start : place.stop])

    def _encode(
        self, block: int, rows: TokenRows, kept: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], Work]:
        """The vectors of the rows that are not kept."""
        texts = np.flatnonzero(kept[rows.starts] < 0)
        fresh = rows if len(texts) == len(rows.starts) else rows.of_texts(texts)
        lengths = fresh.lengths
        work = Work(fresh.num_rows, int(lengths.sum()))
        if fresh is not rows:
            self._listener.encoded(block, len(rows.ids) - work.tokens)

        def on_batch(batch: npt.NDArray[np.int64], size: BatchSize) -> None:
            work.padded_tokens += size.tokens
            work.packed_rows += len(batch) * self._engine.packs
            work.flops += forward_flops(self._backbone, size.tokens, size.squares)
            self._listener.encoded(block, int(lengths[batch].sum()))

        vectors = self._engine.encode(fresh, on_batch=on_batch)
        self._refuse_not_finite(block, fresh, texts, vectors)
        return vectors, work

    def _refuse_not_finite(
        self,
        block: int,
        rows: TokenRows,
        texts: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
    ) -> None:
        bad = np.flatnonzero(~np.isfinite(vectors).all(1))
        if not len(bad):
            return
        text = int(texts[np.searchsorted(rows.starts, bad[0], side="right") - 1])
        name = next(islice(self._tokens.doc_ids(), self._tokens.docs_of(block)[text], None))
        raise BadInput(
            f"{self._shown}: the vector of {name!r} and {len(bad) - 1} others "
            "are not finite (NaN or infinite)",
            hint="the checkpoint is damaged or training diverged; use an earlier one, "
            "or --dtype fp32",
        )

    def _write(
        self,
        block: int,
        vectors: npt.NDArray[np.float32],
        kept: npt.NDArray[np.int64],
        work: Work,
    ) -> None:
        rows, is_kept = self._writer.format, kept >= 0
        measures, recall, stored = rows.rounds and block == 0, None, None
        if self._earlier and is_kept.any():
            stored = is_kept, self._earlier.stored(kept[is_kept])
            recall = self._earlier.recall if measures else None  # floats of some rows are gone
        elif measures:
            recall = recall_of_floats(vectors, rows)
        self._writer.write_block(block, vectors, recall, stored)
        self._listener.finished(block, work)
