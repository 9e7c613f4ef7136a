"""The encoding engine: token rows in, vectors out, as fast as the devices go.

Rows are sorted by length, so that a batch pads next to nothing, and batches hold a fixed number of
tokens rather than of rows. Where all rows of a batch have one length it has no mask either. On a
CPU each core encodes a batch of its own: cores that share one wait for each other at every
operation.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ance_cli.config import ComputeConfig
from ance_cli.errors import ResourceExhausted, is_out_of_memory
from ance_cli.formats.tokens import TokenRows
from ance_cli.models.attention import use_products
from ance_cli.models.devices import choose_dtype, torch_dtype
from ance_cli.models.encoder import Encoder
from ance_cli.models.linear import pack_linears

Positions = npt.NDArray[np.int64]
"""Row indices."""

T = TypeVar("T")

_CPU_LANES = 8
"""Batches that are encoded at a time on a CPU; where it has more cores, they share them. More would
wait for Python's lock."""

_MULTIPLE = 1
"""Widths are not rounded up: to a multiple of 8 that alone pads passages of MS MARCO's lengths by
5 %, and neither the matrix products nor the fused attention kernels ask for it."""


def batches_by_length(
    lengths: npt.NDArray[np.int64], batch_tokens: int, multiple: int = 8
) -> Iterator[Positions]:
    """Row indices in batches of at most `batch_tokens` padded tokens, longest rows first.

    A width has one number of rows, so that few shapes occur: a library that keeps code for each
    shape (oneDNN) would take memory without end. The order is stable, so it depends on the lengths
    alone. A row longer than the budget comes by itself.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = -(-int(lengths[order[start]]) // multiple) * multiple
        stop = start + max(1, batch_tokens // max(width, 1))
        yield order[start:stop]
        start = stop


def rounded_width(longest: int, most: int, multiple: int = 8) -> int:
    """The width to which rows are padded: a multiple, so that few occur, but never over `most`.

    On a CPU the libraries under torch keep memory for each shape that they meet, and do not give it
    back (800 MiB after 497 widths of a 12-layer MiniLM, 154 after every eighth of them).
    """
    return max(longest, min(-(-longest // multiple) * multiple, most))


def in_halves(
    compute: Callable[[Positions], T],
    batch: Positions,
    one: str,
    remedy: str,
    join: Callable[[list[T]], T],
    on_halving: Callable[[Positions], None] = lambda batch: None,
) -> T:
    """`compute(batch)`; where memory runs out, that of its halves, `join`ed, and so on.

    `on_halving` hears of each batch that did not fit. Raises `ResourceExhausted` where a single row
    is too much; `one` and `remedy` say so.
    """
    try:
        return compute(batch)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # gone on with here, where nothing holds on to the failed batch
    if len(batch) == 1:
        raise ResourceExhausted(
            f"{one} does not fit in memory", hint=f"free the device, or {remedy}"
        )
    torch.cuda.empty_cache()
    on_halving(batch)
    halves = [
        in_halves(compute, half, one, remedy, join, on_halving) for half in np.array_split(batch, 2)
    ]
    return join(halves)


def fit_to_cpu(backbone: nn.Module) -> None:
    """Have a backbone compute, for inference only, in the way that is fast on a CPU."""
    use_products(backbone)
    pack_linears(backbone)


class InferenceEngine:
    """An encoder replicated on one or more devices, in one number format.

    `dtype` is the number format, with `auto` resolved. `say` is called with a sentence when batches
    become smaller because memory ran out.
    """

    def __init__(
        self,
        encoder: Encoder,
        pad_id: int,
        devices: list[torch.device],
        config: ComputeConfig,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.dim = encoder.dim
        self._pad_id = pad_id
        self.dtype = choose_dtype(config.dtype, devices[0])
        self._batch_tokens = config.tokens_for(devices[0].type)
        self._say = say
        self._threads = torch.get_num_threads()
        self._threads_each = -(-self._threads // _CPU_LANES)
        self._replicas = []
        for device in devices:
            replica = copy.deepcopy(encoder).eval().requires_grad_(False).to(device)
            replica.backbone.to(torch_dtype(self.dtype))
            lanes = 1
            if device.type == "cpu":
                fit_to_cpu(replica.backbone)
                lanes = self._threads // self._threads_each
            self._replicas += [(replica, device)] * lanes

    def encode(
        self,
        rows: TokenRows,
        on_rows: Callable[[int], None] | None = None,
        on_batch: Callable[[Positions, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """(rows, dim) float32 vectors of the token rows.

        After each batch `on_rows` is called with its number of rows, and `on_batch` with its row
        indices and its padded width.
        """
        vectors = np.empty((rows.num_rows, self.dim), np.float32)
        lengths, budget = rows.lengths, self._batch_tokens
        batches = deque(batches_by_length(lengths, self._batch_tokens, _MULTIPLE))
        lock = threading.Lock()

        def work(replica: Encoder, device: torch.device) -> None:
            if device.type == "cpu":  # of this thread alone
                torch.set_num_threads(self._threads_each)
            on_device: list[tuple[Positions, Tensor]] = []
            while batches:
                try:
                    batch = batches.popleft()
                except IndexError:  # another one was faster
                    break
                # a GPU works on while the next batch is padded: nothing here waits for it
                on_device.append((batch, self._encode_batch(replica, device, rows, batch)))
                with lock:
                    if on_rows:
                        on_rows(len(batch))
                    if on_batch:
                        on_batch(batch, int(lengths[batch[0]]))
            for batch, found in on_device:
                vectors[batch] = found.cpu().numpy()

        try:
            with ThreadPoolExecutor(len(self._replicas)) as pool:
                working = [pool.submit(work, *replica) for replica in self._replicas]
                try:
                    for done in as_completed(working):
                        done.result()
                except BaseException:  # also a signal: nobody wants the rest
                    batches.clear()
                    raise
        finally:
            torch.set_num_threads(self._threads)  # what threads that are yet to come begin with
        if self._batch_tokens < budget:
            self._say(
                f"memory ran out: going on with batches of {self._batch_tokens:,} tokens "
                "(--batch-tokens)"
            )
        return vectors

    def _encode_batch(
        self, replica: Encoder, device: torch.device, rows: TokenRows, batch: Positions
    ) -> Tensor:
        def vectors_of(part: Positions) -> Tensor:
            token_ids, mask = rows.padded(part, self._pad_id, _MULTIPLE)
            with torch.inference_mode():
                whole = bool(mask.all())
                found: Tensor = replica(
                    _moved(token_ids, device), None if whole else _moved(mask, device)
                )
                return found

        longest = int(rows.lengths[batch].max())
        return in_halves(
            vectors_of,
            batch,
            f"{device}: one sequence of {longest} tokens",
            "shorten the texts with --passage-length",
            torch.cat,
            lambda part: self._shrink(len(part) * int(rows.lengths[part].max())),
        )

    def _shrink(self, tokens: int) -> None:
        """Plan what comes after with batches half as large as one that did not fit."""
        self._batch_tokens = min(self._batch_tokens, tokens // 2)


def _moved(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
