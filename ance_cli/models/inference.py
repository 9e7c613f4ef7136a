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


def batches_by_length(
    lengths: npt.NDArray[np.int64], batch_tokens: int, multiple: int = 8
) -> Iterator[npt.NDArray[np.int64]]:
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
        self, replica: Encoder, device: torch.device, rows: TokenRows, batch: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        token_ids, mask = rows.padded(batch, self._pad_id)
        try:
            with torch.inference_mode():
                vectors = replica(
                    torch.from_numpy(token_ids).to(device), torch.from_numpy(mask).to(device)
                )
                found: npt.NDArray[np.float32] = vectors.cpu().numpy()
                return found
        except torch.OutOfMemoryError:
            pass  # gone on with below, where nothing holds on to the failed batch
        if len(batch) == 1:
            raise MachineGaveOut(
                f"{device}: one sequence of {token_ids.shape[1]} tokens does not fit in memory",
                hint="free the device, or shorten the texts with --passage-length",
            )
        torch.cuda.empty_cache()
        halves = [
            self._encode_batch(replica, device, rows, half) for half in np.array_split(batch, 2)
        ]
        return np.concatenate(halves)
