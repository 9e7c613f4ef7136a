"""The encoding engine: token rows in, vectors out, as fast as the devices go.

Rows are sorted by length, so that a batch pads next to nothing, and batches hold a fixed number of
tokens rather than of rows. Several devices share the batches of a block, one thread each.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from ance_cli.errors import MachineGaveOut
from ance_cli.models.devices import torch_dtype
from ance_cli.models.encoder import Encoder
from ance_cli.models.tokens import TokenRows

Places = npt.NDArray[np.int64]
"""Row indices."""


def batches_by_length(
    lengths: npt.NDArray[np.int64], batch_tokens: int, multiple: int = 8
) -> Iterator[Places]:
    """Row indices in batches of at most `batch_tokens` padded tokens, longest rows first.

    The order is stable, so it depends on the lengths alone. A row longer than the budget comes by
    itself.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = -(-int(lengths[order[start]]) // multiple) * multiple
        stop = start + max(1, batch_tokens // max(width, 1))
        yield order[start:stop]
        start = stop


def in_halves(
    compute: Callable[[Places], npt.NDArray[np.float32]], batch: Places, one: str, remedy: str
) -> npt.NDArray[np.float32]:
    """`compute(batch)`, (rows, ...); where memory runs out, that of its halves, and so on.

    Raises `MachineGaveOut` where a single row is too much; `one` and `remedy` put it in words.
    """
    try:
        return compute(batch)
    except torch.OutOfMemoryError:
        pass  # gone on with below, where nothing holds on to the failed batch
    if len(batch) == 1:
        raise MachineGaveOut(f"{one} does not fit in memory", hint=f"free the device, or {remedy}")
    torch.cuda.empty_cache()
    halves = [in_halves(compute, half, one, remedy) for half in np.array_split(batch, 2)]
    return np.concatenate(halves)


class InferenceEngine:
    """An encoder replicated on one or more devices, in one number format."""

    def __init__(
        self,
        encoder: Encoder,
        pad_id: int,
        devices: list[torch.device],
        dtype: str,
        batch_tokens: int,
    ) -> None:
        self.dim = encoder.dim
        self._pad_id = pad_id
        self._batch_tokens = batch_tokens
        self._replicas = []
        for device in devices:
            replica = copy.deepcopy(encoder).eval().requires_grad_(False).to(device)
            replica.backbone.to(torch_dtype(dtype))
            self._replicas.append((replica, device))

    def encode(
        self, rows: TokenRows, on_rows: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """(rows, dim) float32 vectors of the token rows; `on_rows` hears of each batch's size."""
        vectors = np.empty((rows.num_rows, self.dim), np.float32)
        batches = iter(list(batches_by_length(rows.lengths, self._batch_tokens)))
        lock = threading.Lock()

        def work(replica: Encoder, device: torch.device) -> None:
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                vectors[batch] = self._encode_batch(replica, device, rows, batch)
                if on_rows:
                    with lock:
                        on_rows(len(batch))

        if len(self._replicas) == 1:
            work(*self._replicas[0])
        else:
            with ThreadPoolExecutor(len(self._replicas)) as pool:
                list(pool.map(work, *zip(*self._replicas, strict=True)))
        return vectors

    def _encode_batch(
        self, replica: Encoder, device: torch.device, rows: TokenRows, batch: Places
    ) -> npt.NDArray[np.float32]:
        def vectors_of(part: Places) -> npt.NDArray[np.float32]:
            token_ids, mask = rows.padded(part, self._pad_id)
            with torch.inference_mode():
                vectors = replica(
                    torch.from_numpy(token_ids).to(device), torch.from_numpy(mask).to(device)
                )
                found: npt.NDArray[np.float32] = vectors.cpu().numpy()
                return found

        longest = int(rows.lengths[batch].max())
        return in_halves(
            vectors_of,
            batch,
            f"{device}: one sequence of {longest} tokens",
            "shorten the texts with --passage-length",
        )
