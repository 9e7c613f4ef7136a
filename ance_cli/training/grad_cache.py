"""Forward and backward passes of a micro-batch: all at once, or by gradient caching in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ance_cli.formats.tokens import TokenRows
from ance_cli.models.devices import torch_dtype
from ance_cli.models.packing import Packing, pack
from ance_cli.training.distributed import World

Ints = npt.NDArray[np.int64]
Chunk = tuple[Ints | None, Ints | None]
"""Rows of queries and of passages that are encoded together."""

LossOf = Callable[[Tensor, Tensor | None], Tensor]
"""The loss of this rank's queries, from their vectors (b, d) and the vectors of this rank's
passage rows (r, d), None if the rank encodes no passage."""


@dataclass
class GradCacheStep:
    """Encodes token rows and differentiates a loss of their vectors.

    `model` is called with query ids and mask, passage ids and mask; either pair may be None. A mask
    is a `Packing` if the model `packs`.
    `chunk` rows of each side are encoded at a time, 0 = all at once. With chunks the batch is
    encoded twice (gradient caching; Gao et al., 2021, Sec. 3.2): first without gradients, for the
    loss and its gradient with respect to each vector; then chunk by chunk with gradients. So the
    chunk bounds the memory. Without dropout the gradient is that of the whole batch; with dropout
    the random draws differ, because each chunk has its own.
    """

    model: nn.Module
    world: World
    queries: TokenRows
    passages: TokenRows
    pads: tuple[int, int]
    """Padding ids of queries and passages."""
    dtype: str
    chunk: int = 0
    packs: bool = False
    tokens: int = field(default=0, init=False)
    """Tokens trained on so far, without padding."""
    computed: int = field(default=0, init=False)
    """The same with padding."""
    squares: int = field(default=0, init=False)
    """The sum of the squares of the rows' lengths, with padding."""

    def backward(self, query_rows: Ints, passage_rows: Ints, most: tuple[int, int],
                 loss_of: LossOf, sync: bool, seed: int) -> Tensor:  # fmt: skip
        """Add the gradients of `loss_of(query vectors, passage vectors)`; returns the loss, () on
        the device, for which the host has not waited.

        `query_rows`, `passage_rows`: rows of `queries` and `passages` that this rank encodes;
        `most`: the largest number of queries, and of passage rows, that any rank encodes. With
        chunks, passage rows may be repeated after the last one. The gradients are averaged over the
        ranks if `sync`. `seed` seeds the dropout.
        """
        # every rank must choose alike: the collectives of the two ways come in different orders
        if not self.chunk or max(most) <= self.chunk:
            with self.world.syncing(self.model, sync):
                torch.manual_seed(seed)
                q, d = self._encode(query_rows, passage_rows if len(passage_rows) else None)
                assert q is not None
                loss = loss_of(q, d)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach()
        chunks = self._chunks((query_rows, passage_rows), most)
        with torch.no_grad():
            parts = [self._seeded(seed + n, *chunk) for n, chunk in enumerate(chunks)]
        q = torch.cat([part[0] for part in parts if part[0] is not None]).requires_grad_()
        d = _cat([part[1] for part in parts])
        if d is not None:
            d.requires_grad_()
        loss = loss_of(q, d)
        loss.backward()  # type: ignore[no-untyped-call]
        q_left, d_left = q.grad, None if d is None else d.grad
        for n, chunk in enumerate(chunks):
            with self.world.syncing(self.model, sync and n == len(chunks) - 1):
                q_part, d_part = self._seeded(seed + n, *chunk)
                surrogate = q.new_zeros(())
                if q_part is not None and q_left is not None:
                    surrogate = surrogate + (q_part * q_left[: len(q_part)]).sum()
                    q_left = q_left[len(q_part) :]
                if d_part is not None and d_left is not None:
                    surrogate = surrogate + (d_part * d_left[: len(d_part)]).sum()
                    d_left = d_left[len(d_part) :]
                surrogate.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _chunks(self, rows_of: tuple[Ints, Ints], most: tuple[int, int]) -> list[Chunk]:
        """The chunks of every rank are as many, with rows of the same sides: sharded weights are
        gathered in each. A rank with too few rows repeats some.

        The last chunk holds rows of both sides: its backward pass averages over the ranks, which
        waits for a gradient of every parameter.
        """
        sides: list[list[Ints]] = []
        for rows, most_rows in zip(rows_of, most, strict=True):
            pieces = -(-most_rows // self.chunk)
            filled = np.resize(rows, max(len(rows), pieces))
            sides.append(np.array_split(filled, pieces)[::-1] if pieces else [])
        pairs: list[Chunk] = list(zip_longest(*sides))  # type: ignore[arg-type]
        return pairs[::-1]

    def _seeded(
        self, seed: int, query_rows: Ints | None, passage_rows: Ints | None
    ) -> tuple[Tensor | None, Tensor | None]:
        torch.manual_seed(seed)
        return self._encode(query_rows, passage_rows)

    def _encode(
        self, query_rows: Ints | None, passage_rows: Ints | None
    ) -> tuple[Tensor | None, Tensor | None]:
        inputs: list[Tensor | Packing | None] = []
        for table, rows, pad in (
            (self.queries, query_rows, self.pads[0]),
            (self.passages, passage_rows, self.pads[1]),
        ):
            if rows is None:
                inputs += [None, None]
                continue
            if self.packs:
                inputs += pack(table, rows, self.world.to_device)
                computed = table.lengths[rows]
            else:
                arrays = table.padded(rows, pad)
                inputs += map(self.world.to_device, arrays)
                computed = np.full(len(rows), arrays[0].shape[1])
            if torch.is_grad_enabled():  # the first pass of gradient caching does not count
                self.tokens += int(table.lengths[rows].sum())
                self.computed += int(computed.sum())
                self.squares += int((computed**2).sum())
        with torch.autocast(
            self.world.device.type, dtype=torch_dtype(self.dtype), enabled=self.dtype != "fp32"
        ):
            vectors: tuple[Tensor | None, Tensor | None] = self.model(*inputs)
            return vectors


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
