"""Part 7: whether a compiled step, or one captured in a CUDA graph, would pay.

Every row has the greatest length, so that no shape changes and no batch has a mask. A captured step
gets its tokens on the device and no seed for dropout: what it gains over ours is the most that
capturing can give.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ance_cli.formats.tokens import TokenRows
from ance_cli.models.devices import choose_dtype, torch_dtype
from ance_cli.models.dual import DualEncoder, load_dual
from ance_cli.models.encoder import set_dropout
from ance_cli.progress import Silent
from ance_cli.training.distributed import World
from ance_cli.training.grad_cache import GradCacheStep
from ance_cli.training.loss import nll
from ance_cli.training.train_worker import pack_batches
from benchmarks.gpu_trial.parts import CAPTURED_ARMS, OUR_STEP, shape_name
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.trial import Trial

Step = Callable[[], Tensor]
"""One optimizer step; returns the loss () on the device."""

_WARM_UP = 3
_LR = 1e-5


def run(trial: Trial) -> None:
    inputs, sizes = Inputs(trial.work), trial.sizes
    for folder, shape in ((inputs.small, sizes.small), (inputs.base, sizes.base)):
        name = shape_name(shape)
        with trial.arm(*(each for each in trial.numbers if each.startswith(f"{name}: "))):
            ours = _measure(trial, _Training(trial, folder).ours())
            trial.record(f"{name}: {OUR_STEP}", ours.rate)
            for arm, needs_cuda in CAPTURED_ARMS.items():
                if trial.cuda or not needs_cuda:
                    _compare(trial, name, arm, folder, ours)


@dataclass(frozen=True)
class _Measured:
    rate: float
    """Steps a second."""
    first: float
    """Seconds of the first steps, in which a step is compiled."""
    losses: list[float]


def _compare(trial: Trial, name: str, arm: str, folder: Path, ours: _Measured) -> None:
    rate, losses = f"{name}: {arm}", f"{name}: {arm}: last loss from ours, share of the first"
    with trial.arm(rate, losses):
        step = _Training(trial, folder).on_device(compiled="compiled" in arm)
        found = _measure(trial, step, captured="captured" in arm)
        trial.record(rate, found.rate, first_seconds=found.first)
        difference = abs(found.losses[-1] - ours.losses[-1]) / ours.losses[0]
        trial.record(losses, difference, losses=found.losses, ours=ours.losses)


class _Training:
    """An encoder in training on one batch."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        sizes = trial.sizes
        self._device = trial.device
        dtype = choose_dtype("auto", trial.device)
        self._dtype = "fp32" if dtype == "fp16" else dtype  # as ance trains
        self._dual = load_dual(Inputs(trial.work).checkpoint(folder, sizes))
        set_dropout(self._dual, 0.0)
        self._dual.to(trial.device).train()
        self._trained = [p for p in self._dual.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=_LR, fused=True, capturable=trial.cuda
        )
        rng = np.random.default_rng(0)
        self._queries, self._passages = (
            _rows(rng.integers(5, sizes.vocabulary, (rows, length)))
            for rows, length in ((sizes.batch, sizes.query_length),
                                 (2 * sizes.batch, sizes.passage_length))
        )  # fmt: skip
        places = torch.arange(sizes.batch, device=trial.device)
        self._members = torch.stack([places, places + sizes.batch], 1)
        """(B, 2) columns of each query's positive and negative."""

    def ours(self) -> Step:
        """The step of `ance train-segment`, from token rows on the host."""
        if self._device.type == "cuda":
            pack_batches(self._dual, self._device, self._dtype, Silent())
        queries, passages = (np.arange(rows.num_rows) for rows in (self._queries, self._passages))
        step = GradCacheStep(
            self._dual, World(self._device), self._queries, self._passages, (0, 0), self._dtype,
            packs=self._dual.passage.packs,
        )  # fmt: skip
        most = len(queries), len(passages)

        def run() -> Tensor:
            return self._updated(step.backward(queries, passages, most, self._loss, True, seed=0))

        return run

    def on_device(self, compiled: bool) -> Step:
        """The same arithmetic on tokens that are on the device."""
        ids = [
            torch.from_numpy(rows.ids.astype(np.int64)).view(rows.num_rows, -1).to(self._device)
            for rows in (self._queries, self._passages)
        ]
        model: DualEncoder = self._dual
        if compiled:  # a CPU may have no compiler
            backend = "inductor" if self._device.type == "cuda" else "aot_eager"
            model = torch.compile(model, backend=backend)  # type: ignore[assignment]

        def run() -> Tensor:
            with torch.autocast(
                self._device.type, torch_dtype(self._dtype), enabled=self._dtype != "fp32"
            ):
                q, d = model(ids[0], None, ids[1], None)
            loss = self._loss(q, d)
            loss.backward()  # type: ignore[no-untyped-call]
            return self._updated(loss.detach())

        return run

    def _loss(self, q: Tensor | None, d: Tensor | None) -> Tensor:
        assert q is not None and d is not None
        return nll((q @ d.T).gather(1, self._members))

    def _updated(self, loss: Tensor) -> Tensor:
        clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss


def _rows(ids: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> TokenRows:
    """Rows of one length."""
    count, length = ids.shape
    return TokenRows(
        ids.astype(np.int32).ravel(), np.arange(count + 1) * length, np.ones(count, np.int32)
    )


def _measure(trial: Trial, step: Step, captured: bool = False) -> _Measured:
    started = time.perf_counter()
    with _apart(trial):
        losses = [step() for _ in range(_WARM_UP)]
    first = time.perf_counter() - started
    if captured:
        step = _captured(step)
    losses += [step() for _ in range(trial.sizes.half)]
    _finish(trial)
    started = time.perf_counter()
    losses += [step() for _ in range(trial.sizes.half)]
    _finish(trial)
    rate = trial.sizes.half / (time.perf_counter() - started)
    return _Measured(rate, first, torch.stack(losses).tolist())


def _captured(step: Step) -> Step:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def run() -> Tensor:
        graph.replay()
        return loss.clone()

    return run


@contextmanager
def _apart(trial: Trial) -> Iterator[None]:
    """In a stream of its own, as CUDA graphs ask of the steps before a capture."""
    if trial.cuda:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream().wait_stream(side)
    else:
        yield
    _finish(trial)


def _finish(trial: Trial) -> None:
    if trial.cuda:
        torch.cuda.synchronize()
