"""Encoding blocks of a token cache into unfinished embeddings: the part of one process.

A block's vectors depend on the block, the tower and the number format alone, so it does not matter
which process encodes it, or when.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import torch

from ance_cli.config.sets import Side
from ance_cli.errors import BadInput
from ance_cli.formats.embeddings import EmbeddingsWriter
from ance_cli.formats.tokens import TokenCache, TokenRows
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.encoder import load_encoder
from ance_cli.models.flops import forward_flops, matmul_ceiling
from ance_cli.models.inference import InferenceEngine

_CEILING_AFTER_SECONDS = 10.0
"""Encoding shorter than this is not worth the time in which the ceiling is measured."""


@dataclass(frozen=True)
class EncodeJob:
    """What a process needs to know to encode blocks; the rest lies in the folders."""

    checkpoint: str
    settings: dict[str, Any]
    side: Side
    tokens: str
    folder: str
    output_dtype: str
    block_docs: int
    device: str
    dtype: str
    batch_tokens: int
    pad_id: int

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> EncodeJob:
        return cls(**orjson.loads(text))


@dataclass
class Work:
    """What was done: sums over blocks."""

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    flops: int = 0
    """Of the forward passes, padding included."""
    capacity: float = 0.0
    """FLOPs that large matrix products could have done meanwhile; 0 = not measured."""

    def add(self, other: Work) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Listener(Protocol):
    """Who hears how the work goes."""

    def say(self, text: str) -> None: ...

    def encoded(self, block: int, tokens: int) -> None:
        """So many tokens more of a block are encoded."""

    def finished(self, block: int, work: Work) -> None:
        """A block is durable. Comes from another thread than the rest."""


class BlockEncoder:
    """An encoder on one device, the token cache it reads and the embeddings it writes."""

    def __init__(self, job: EncodeJob, listener: Listener) -> None:
        checkpoint = Checkpoint(Path(job.checkpoint)).with_settings(**job.settings)
        self._shown = checkpoint.shown
        self._device = torch.device(job.device)
        self._dtype = job.dtype
        self._listener = listener
        self._tokens = TokenCache(Path(job.tokens))
        encoder = load_encoder(checkpoint, job.side)
        self._backbone = encoder.backbone
        self._engine = InferenceEngine(
            encoder, job.pad_id, [self._device], job.dtype, job.batch_tokens, listener.say
        )
        self._writer = EmbeddingsWriter(
            Path(job.folder), self._engine.dim, job.output_dtype, job.block_docs
        )

    def run(self, next_block: Callable[[], int | None]) -> float:
        """Encode the blocks that `next_block` names until it names none.

        A block is written while the next one is encoded. Returns the FLOPs that the device could
        have done meanwhile, 0 where that was not measured. Raises `BadInput` where a vector is not
        finite.
        """
        started = time.monotonic()
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as disk:
            while (block := next_block()) is not None:
                rows = self._tokens.block(block)
                vectors, work = self._encode(block, rows)
                if writing:
                    writing.result()
                writing = disk.submit(self._write, block, vectors, work)
            if writing:
                writing.result()
        seconds = time.monotonic() - started
        if seconds < _CEILING_AFTER_SECONDS:
            return 0.0
        return seconds * matmul_ceiling(self._device, self._dtype)

    def _encode(self, block: int, rows: TokenRows) -> tuple[npt.NDArray[np.float32], Work]:
        lengths = rows.lengths
        work = Work(rows.num_rows, int(lengths.sum()))

        def on_batch(batch: npt.NDArray[np.int64], width: int) -> None:
            work.padded_tokens += len(batch) * width
            work.flops += forward_flops(
                self._backbone, len(batch) * width, len(batch) * width * width
            )
            self._listener.encoded(block, int(lengths[batch].sum()))

        vectors = self._engine.encode(rows, on_batch=on_batch)
        bad = np.flatnonzero(~np.isfinite(vectors).all(1))
        if len(bad):
            doc = int(np.searchsorted(rows.starts, bad[0], side="right")) - 1
            place = self._tokens.docs_of(block)[doc]
            name = next(islice(self._tokens.doc_ids(), place, None))
            raise BadInput(
                f"{self._shown}: the vector of {name!r} and {len(bad) - 1} others "
                "are not finite (NaN or infinite)",
                hint="the checkpoint is damaged or training diverged; use an earlier one, "
                "or --dtype fp32",
            )
        return vectors, work

    def _write(self, block: int, vectors: npt.NDArray[np.float32], work: Work) -> None:
        self._writer.write_block(block, vectors)
        self._listener.finished(block, work)
