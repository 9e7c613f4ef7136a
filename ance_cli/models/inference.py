"""The encoding engine: token rows in, vectors out, at the devices' speed.

Rows are sorted by length, so that batches have almost no padding, and batches have a fixed number
of tokens rather than of rows. On a GPU the tokens of a batch are packed, if the family allows it.
Otherwise a batch has a mask, unless all its rows have the same length. On a CPU each core encodes a
batch of its own: cores that share a batch wait for each other at every operation.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ance_cli.config import ComputeConfig
from ance_cli.errors import ResourceExhausted, is_out_of_memory
from ance_cli.formats.tokens import TokenRows
from ance_cli.models.attention import use_products
from ance_cli.models.devices import choose_dtype, to_device, torch_dtype, without_cudnn_attention
from ance_cli.models.encoder import Encoder
from ance_cli.models.flops import forward_flops
from ance_cli.models.linear import pack_linears
from ance_cli.models.packing import cannot_pack, pack, use_packing

Positions = npt.NDArray[np.int64]
"""Row indices."""

T = TypeVar("T")
Model = TypeVar("Model")

_CPU_LANES = 8
"""Batches that are encoded at the same time on a CPU; more cores than this share the batches. More
batches would wait for Python's lock."""

_MULTIPLE = 1
"""Widths are not rounded up: a multiple of 8 would pad passages of MS MARCO's lengths by 5 %, and
neither the matrix products nor the fused attention kernels need it."""


def batches_by_length(
    lengths: npt.NDArray[np.int64], batch_tokens: int, multiple: int = 8
) -> Iterator[Positions]:
    """Row indices in batches of at most `batch_tokens` padded tokens, longest rows first.

    Batches of one width have the same number of rows, so that few shapes occur: a library that
    keeps code for each shape (oneDNN) would use more and more memory. The order is stable, so it
    depends on the lengths alone. A row longer than `batch_tokens` is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = -(-int(lengths[order[start]]) // multiple) * multiple
        stop = start + max(1, batch_tokens // max(width, 1))
        yield order[start:stop]
        start = stop


def rounded_width(longest: int, most: int, multiple: int = 8) -> int:
    """The width to which rows are padded: a multiple, so that few widths occur, but at most `most`.

    On a CPU the libraries under torch keep memory for each shape that occurs, and never release it
    (800 MiB after 497 widths of a 12-layer MiniLM, 154 MiB after every eighth of them).
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
    """`compute(batch)`; if memory runs out, the results of its two halves, `join`ed, recursively.

    `on_halving` is called with each batch that did not fit. Raises `ResourceExhausted` if a single
    row does not fit; `one` and `remedy` are the words of its message.
    """
    try:
        return compute(batch)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # outside of the except block, nothing keeps the failed batch in memory
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


def run_batches(
    pool: ThreadPoolExecutor,
    replicas: Sequence[tuple[Model, torch.device]],
    batches: Iterable[Positions],
    compute: Callable[[Model, torch.device, Positions], Tensor],
    results: npt.NDArray[np.float32],
    on_batch: Callable[[Positions], None],
) -> None:
    """Fill `results` with what `compute` makes of each batch; each replica of a model takes the
    next batch in a thread of the pool.

    Results stay on their device until no batch is left, so that nothing waits for a GPU while the
    next batch is prepared. `on_batch` is called after each batch, by one thread at a time.
    """
    waiting, lock = deque(batches), threading.Lock()

    def work(model: Model, device: torch.device) -> None:
        on_device: list[tuple[Positions, Tensor]] = []
        while waiting:
            try:
                batch = waiting.popleft()
            except IndexError:  # another thread took the last batch
                break
            on_device.append((batch, compute(model, device, batch)))
            with lock:
                on_batch(batch)
        for batch, found in on_device:
            results[batch] = found.cpu().numpy()

    working = [pool.submit(work, *replica) for replica in replicas]
    try:
        for done in as_completed(working):
            done.result()
    except BaseException:  # also after a signal: drop the rest
        waiting.clear()
        raise
    finally:
        wait(working)


def fit_to_cpu(backbone: nn.Module) -> None:
    """Make a backbone fast on a CPU, for inference only."""
    use_products(backbone)
    pack_linears(backbone)


@dataclass(frozen=True)
class BatchSize:
    """What the device computed for a batch."""

    tokens: int
    """With padding."""
    squares: int
    """The sum of the squares of the rows' lengths, with padding."""


class InferenceEngine:
    """An encoder on one or more devices, in one number format; it takes the encoder over.

    `dtype` is the number format, with `auto` resolved. `say` is called with a sentence when a GPU's
    batches cannot be packed, and when they become smaller because memory ran out.
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
        flops = forward_flops(encoder.backbone, 1, 0)
        self._batch_tokens = config.tokens_for(devices[0].type, flops)
        self._say = say
        self._threads = torch.get_num_threads()
        self._threads_each = -(-self._threads // _CPU_LANES)
        self._replicas = []
        encoder.eval().requires_grad_(False)
        without_cudnn_attention(devices)  # a worker's device was not chosen in its process
        reasons = (cannot_pack(encoder.backbone, device, self.dtype) for device in devices)
        padded_because = next(filter(None, reasons), None)
        if devices[0].type == "cuda" and padded_because:
            say(f"batches are padded: {padded_because}")
        for place, device in enumerate(devices):
            last = place == len(devices) - 1
            replica = (encoder if last else copy.deepcopy(encoder)).to(device)
            replica.chain[0].to(torch_dtype(self.dtype))
            lanes = 1
            if device.type == "cpu":
                fit_to_cpu(replica.backbone)
                lanes = self._threads // self._threads_each
            elif padded_because is None:
                use_packing(replica.backbone)
                replica.packs = True
            self._replicas += [(replica, device)] * lanes
        # threads that stay: torch keeps what it prepared for a GPU's kernels by thread
        self._pool = ThreadPoolExecutor(len(self._replicas), "encode")

    @property
    def packs(self) -> bool:
        """Whether batches have no padding."""
        return all(replica.packs for replica, _ in self._replicas)

    def encode(
        self,
        rows: TokenRows,
        on_rows: Callable[[int], None] | None = None,
        on_batch: Callable[[Positions, BatchSize], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """(rows, dim) float32 vectors of the token rows.

        After each batch `on_rows` is called with its number of rows, and `on_batch` with its row
        indices and what was computed for them.
        """
        vectors = np.empty((rows.num_rows, self.dim), np.float32)
        lengths, budget = rows.lengths, self._batch_tokens

        def encoded(replica: Encoder, device: torch.device, batch: Positions) -> Tensor:
            if device.type == "cpu":  # applies to this thread alone
                torch.set_num_threads(self._threads_each)
            return self._encode_batch(replica, device, rows, batch)

        def taken(batch: Positions) -> None:
            if on_rows:
                on_rows(len(batch))
            if on_batch:
                on_batch(batch, _size_of(lengths[batch], self.packs))

        batches = batches_by_length(lengths, self._batch_tokens, _MULTIPLE)
        try:
            run_batches(self._pool, self._replicas, batches, encoded, vectors, taken)
        finally:
            torch.set_num_threads(self._threads)  # new threads inherit this
        if self._batch_tokens < budget:
            self._say(
                f"memory ran out: continuing with batches of {self._batch_tokens:,} tokens "
                "(--batch-tokens)"
            )
        return vectors

    def _encode_batch(
        self, replica: Encoder, device: torch.device, rows: TokenRows, batch: Positions
    ) -> Tensor:
        def vectors_of(part: Positions) -> Tensor:
            with torch.inference_mode():
                if replica.packs:
                    packed: Tensor = replica(*pack(rows, part, partial(to_device, device=device)))
                    return packed
                token_ids, mask = rows.padded(part, self._pad_id, _MULTIPLE)
                whole = bool(mask.all())
                padded: Tensor = replica(
                    to_device(token_ids, device), None if whole else to_device(mask, device)
                )
                return padded

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
        """Make later batches half as large as a batch that did not fit."""
        self._batch_tokens = min(self._batch_tokens, tokens // 2)


def _size_of(lengths: npt.NDArray[np.int64], packed: bool) -> BatchSize:
    computed = lengths if packed else np.full(len(lengths), lengths.max())
    return BatchSize(int(computed.sum()), int((computed**2).sum()))
