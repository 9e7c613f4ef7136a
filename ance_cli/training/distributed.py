"""All logic of ranks: which one is main, which part of a batch each encodes, and how their vectors
and flags are gathered.

Every rank computes the whole global batch (the stream is a pure function) and encodes one part:
each distinct document is encoded once, on one rank. The vectors are gathered with their gradients,
so a step computes the same on one rank or eight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ance_cli.errors import AnceError
from ance_cli.models.devices import to_device
from ance_cli.training.heartbeat import Heartbeat
from ance_cli.training.launch import PEER_LOST


@dataclass(frozen=True)
class World:
    """One process among `size`, computing on `device`."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    """For numbers that hosts exchange; None: the group of the devices, which are CPUs."""
    heartbeat: Heartbeat | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and reports."""
        return self.rank == 0

    def part_of(self, count: int) -> npt.NDArray[np.int64]:
        """This rank's part of `count` places: a contiguous range."""
        return np.array_split(np.arange(count), self.size)[self.rank]

    def part_sums(self, values: npt.NDArray[Any]) -> list[int]:
        """For every rank, the sum of the values in its part (`part_of`)."""
        return [int(part.sum()) for part in np.array_split(values, self.size)]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model for training: its gradients are averaged over the ranks."""
        if self.size == 1 or isinstance(model, FSDPModule):  # the latter does so itself
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        # no buffer changes in training, so no forward pass need wait for another rank
        new_name = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        unsynced = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
        return DistributedDataParallel(model, device_ids=devices, **unsynced)  # type: ignore[arg-type]

    @contextmanager
    def syncing(self, model: nn.Module, now: bool) -> Iterator[None]:
        """If `now`, average the gradients over the ranks in this block's backward pass; otherwise a
        later backward pass averages them.

        A sharded model averages them in every pass: a rank that waited would hold whole gradients.
        """
        if now or not isinstance(model, DistributedDataParallel):
            yield
        else:
            with model.no_sync():
                yield

    def gather(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """(sum(counts), d): the rows of all ranks in rank order, with gradients for this rank's.

        `vectors` (counts[rank], d). The backward pass sums the gradients of all ranks' losses.
        """
        if self.size == 1:
            return vectors
        gathered = _Gather.apply(vectors, list(counts), self.rank)  # type: ignore[no-untyped-call]
        return gathered  # type: ignore[no-any-return]

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sum of each number over the ranks; equal on every rank."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.control)
        return summed.tolist()

    def summed(self, *values: Tensor) -> list[Tensor]:
        """The sum of each () tensor over the ranks; the host does not wait for it."""
        if self.size == 1:
            return list(values)
        stacked = torch.stack(values)
        dist.all_reduce(stacked)
        return list(stacked)

    def all_reduce_min(self, value: int) -> int:
        """The minimum of a number over the ranks; equal on every rank."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.control)
        return int(found)

    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """An array on the device; the host does not wait for a GPU's copy."""
        return to_device(array, self.device)

    def wait(self) -> None:
        """Wait until every rank calls this."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def close(self) -> None:
        """Wait for the other ranks and leave the group."""
        self.wait()
        if self.heartbeat:
            self.heartbeat.stop()
        if self.size > 1:
            dist.destroy_process_group()

    @contextmanager
    def losing_peers(self) -> Iterator[None]:
        """Raise `PeerLost` for the various errors with which backends report a lost rank."""
        try:
            yield
        except RuntimeError as error:
            words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
            if self.size > 1 and any(word in str(error) for word in words):
                raise PeerLost(f"rank {self.rank}: another rank has ended", hint=_AGAIN) from error
            raise


_AGAIN = "read that rank's own message, then repeat the command to continue"
_LOOK_THERE = "look at that machine, then repeat the command to continue from the newest state"


class PeerLost(AnceError):
    """Another rank ended in the middle of a step."""

    exit_code = PEER_LOST


class _Gather(torch.autograd.Function):
    """All-gather of rows in uneven numbers; its gradient is the sum over the ranks, for the rows of
    this rank."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        most = max(counts)
        padded = vectors.new_zeros((most, vectors.shape[1]))
        padded[: len(vectors)] = vectors
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        first = sum(ctx.counts[: ctx.rank])
        return summed[first : first + ctx.counts[ctx.rank]], None, None


def join_world(devices: list[torch.device], on_lost: Callable[[PeerLost], None]) -> World:
    """The world in torchrun's environment variables; `devices` are the devices of this machine.

    `on_lost` is called in a thread if another rank stands still; it must end the process.
    """
    store, rank, size = next(rendezvous("env://"))
    device = devices[int(os.environ["LOCAL_RANK"]) % len(devices)]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    # hosts agree by gloo: numbers through NCCL would wait for all that the GPU has to do
    control = dist.new_group(backend="gloo") if device.type == "cuda" else None
    heartbeat = Heartbeat(
        store, rank, size, lambda what: on_lost(PeerLost(f"rank {rank}: {what}", hint=_LOOK_THERE))
    )
    heartbeat.start()
    return World(device, rank, size, control, heartbeat)
