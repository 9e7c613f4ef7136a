"""Part 1: which attention kernel torch takes for the batches of encoding, and what a shape that it
sees for the first time costs.

torch prefers cuDNN's attention on Hopper and later GPUs. cuDNN builds a plan for each shape, and
the batches of one block have fifty shapes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from ance_cli.models.inference import batches_by_length
from ance_cli.models.packing import attend
from benchmarks.gpu_trial.parts import ATTENTION_ARMS
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.profiling import profiled
from benchmarks.gpu_trial.sizes import Shape
from benchmarks.gpu_trial.trial import Trial

_WIDTHS_IN = 8


@dataclass(frozen=True)
class BatchShape:
    """A batch of encoding: its lengths, longest first, and the width that it is padded to."""

    lengths: tuple[int, ...]
    width: int


def cudnn_attention() -> bool:
    """Whether torch may take cuDNN's attention."""
    return bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]


@contextmanager
def without_cudnn() -> Iterator[None]:
    """torch takes another attention than cuDNN's in this block."""
    before = cudnn_attention()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def with_cudnn() -> Iterator[None]:
    """As torch chooses by itself: `ance` leaves cuDNN's attention on in this block."""
    before = cudnn_attention()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with patch("ance_cli.models.devices.without_cudnn_attention", lambda devices: None):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def padded() -> Iterator[None]:
    """Encoders that are made in this block get padded batches."""
    with (
        patch("ance_cli.models.inference.cannot_pack", lambda *_: "the trial compares"),
        patch("ance_cli.models.packing.cannot_pack", lambda *_, **__: "the trial compares"),
    ):
        yield


def run(trial: Trial) -> None:
    lengths = Inputs(trial.work).cache().block(0).lengths
    budget = trial.sizes.batch_tokens[0]
    batches = [tuple(lengths[rows].tolist()) for rows in batches_by_length(lengths, budget, 1)]
    shapes = [BatchShape(batch, batch[0]) for batch in batches][: trial.sizes.attention_shapes]
    with torch.inference_mode():
        for arm in ATTENTION_ARMS:
            if "cuDNN" in arm and not trial.cuda:
                continue
            names = [f"{arm}: {what}" for what in ("kernel", "a block", "plan of a shape, median",
                                                    "plan of a shape, longest")]  # fmt: skip
            with trial.arm(*names):
                _measure(trial, arm, shapes, names)
        name = "plan of a shape in a new thread, median"
        with trial.arm(name):
            _measure_in_a_thread(trial, name, shapes)
        if trial.cuda:
            with trial.arm("packed: a block"):
                milliseconds = [_packed(trial, shape) for shape in shapes]
                trial.record("packed: a block", sum(milliseconds), shapes=len(shapes))
    for dropout in (0.0, 0.1):
        for name, context in (
            (f"backward, dropout {dropout:g}", nullcontext),
            (f"backward, dropout {dropout:g}, without cuDNN", without_cudnn),
        ):
            if context is without_cudnn and not trial.cuda:
                continue
            with trial.arm(name), context():
                some = shapes[:: max(1, len(shapes) // trial.sizes.backward_shapes)]
                milliseconds = [_backward(trial, shape, dropout) for shape in some]
                trial.record(name, sum(milliseconds), shapes=len(some))


def _measure(trial: Trial, arm: str, shapes: list[BatchShape], names: list[str]) -> None:
    """First and second call of every shape in one arm."""
    if "eights" in arm:
        shapes = [BatchShape(each.lengths, -(-each.width // _WIDTHS_IN) * _WIDTHS_IN)
                  for each in shapes]  # fmt: skip
    masked = "no mask" not in arm
    with without_cudnn() if "cuDNN" in arm else nullcontext():
        times = [_two_calls(trial, shape, masked) for shape in shapes]
        if trial.cuda:
            tensors = _inputs(trial, trial.sizes.base, shapes[0], masked)
            kernels = profiled(lambda: _attend(*tensors)).top()
            trial.record(names[0], kernels[0][0] if kernels else "none", kernels=kernels)
    plans = [max(0.0, first - second) for first, second in times]
    trial.record(names[1], sum(second for _, second in times), shapes=len(shapes))
    trial.record(names[2], statistics.median(plans))
    trial.record(names[3], max(plans))


def _measure_in_a_thread(trial: Trial, name: str, shapes: list[BatchShape]) -> None:
    """Shapes that the main thread has seen, in a thread that has not: the plans may be its own."""

    def plans() -> list[float]:
        with torch.inference_mode():
            times = [_two_calls(trial, shape, masked=False) for shape in shapes]
        return [max(0.0, first - second) for first, second in times]

    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(plans).result()
    trial.record(name, statistics.median(found), longest=max(found))


def _inputs(
    trial: Trial, shape: Shape, batch: BatchShape, masked: bool, grad: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v (B, H, L, D) as a BERT layer lays them out, and a mask (B, 1, L, L)."""
    rows = len(batch.lengths)
    dtype = torch.bfloat16

    def one() -> Tensor:
        flat = torch.randn(rows, batch.width, shape.width, device=trial.device, dtype=dtype)
        parts = flat.view(rows, batch.width, shape.heads, -1).transpose(1, 2)
        return parts.requires_grad_() if grad else parts

    mask = None
    if masked:
        lengths = torch.tensor(batch.lengths, device=trial.device)
        inside = torch.arange(batch.width, device=trial.device) < lengths[:, None]
        mask = inside[:, None, None, :].expand(-1, 1, batch.width, -1)
    return one(), one(), one(), mask


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _two_calls(trial: Trial, batch: BatchShape, masked: bool) -> tuple[float, float]:
    """Milliseconds of the first and of the second call of a shape."""
    tensors = _inputs(trial, trial.sizes.base, batch, masked)
    first, second = (_milliseconds(trial, lambda: _attend(*tensors)) for _ in range(2))
    return first, second


def _packed(trial: Trial, batch: BatchShape) -> float:
    """Milliseconds of the second of two calls of the kernel of packed batches."""
    shape = trial.sizes.base
    lengths = torch.tensor([0, *batch.lengths], device=trial.device)
    bounds = lengths.cumsum(0, dtype=torch.int32)
    q, k, v = (
        torch.randn(1, shape.heads, sum(batch.lengths), shape.width // shape.heads,
                    device=trial.device, dtype=torch.bfloat16)
        for _ in range(3)
    )  # fmt: skip

    def call() -> None:
        attend(nn.Identity(), q, k, v, None, is_causal=False, cu_seq_lens_q=bounds,
               max_length_q=batch.width)  # fmt: skip

    call()
    return _milliseconds(trial, call)


def _backward(trial: Trial, batch: BatchShape, dropout: float) -> float:
    """Milliseconds of a forward and a backward pass, the second of two."""
    q, k, v, mask = _inputs(trial, trial.sizes.base, batch, masked=True, grad=True)

    def step() -> None:
        _attend(q, k, v, mask, dropout).sum().backward()  # type: ignore[no-untyped-call]

    step()
    return _milliseconds(trial, step)


def _milliseconds(trial: Trial, work: Callable[[], object]) -> float:
    if trial.cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if trial.cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)
