"""True gradients of single negatives: dl(d+, d-) / d theta over all parameters, one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ance_cli.diagnostics.pair import ORACLE, Draws
from ance_cli.diagnostics.theory import Moments, drawn, squared_mean
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import load_dual
from ance_cli.models.tokens import Tokenizer
from ance_cli.training.data import rows_of_docs
from ance_cli.training.gradients import group_norms, layer_groups
from ance_cli.training.loss import LOSSES, doc_scores


@dataclass(frozen=True)
class Gradients:
    """What the drawn negatives of one pair gave.

    `norms` position -> group -> norm of l's gradient there, `all` for every parameter together.
    `moments` kind -> of its weighted estimator, with the oracle's draws in place of G; `mean`
    |G|^2 by those.
    """

    norms: dict[int, dict[str, float]]
    moments: dict[str, Moments]
    mean: float


class ExampleGradients:
    """An encoder in float32, without dropout, that differentiates l(d+, d-) for one d- at a time.

    Memory beside the model: a gradient, and one more for each kind of draws.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, loss: str, margin: float, scale: float
    ) -> None:
        self._dual = load_dual(checkpoint).to(device)
        self._tokenizer = Tokenizer(checkpoint)
        self._device = device
        self._loss = lambda scores: LOSSES[loss](scores * scale, margin)
        named = [(name, p) for name, p in self._dual.named_parameters() if p.requires_grad]
        self._parameters = [parameter for _, parameter in named]
        self._groups = layer_groups(named)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters)

    def of(
        self,
        query: str,
        positive: str,
        negatives: Mapping[int, str],
        draws: Mapping[str, Draws],
        on_gradient: Callable[[], None] = lambda: None,
    ) -> Gradients:
        """The gradients of every drawn negative; `negatives` position -> text, `draws` by kind.

        A document drawn several times is differentiated once. The draws of `ORACLE`, which misses
        no negative, stand for the gradient over all of them.
        """
        times = {kind: Counter(found.docs.tolist()) for kind, found in draws.items()}
        weight_of = {
            kind: dict(zip(found.docs.tolist(), found.weights.tolist(), strict=True))
            for kind, found in draws.items()
        }
        sums = {kind: [torch.zeros_like(p) for p in self._parameters] for kind in draws}
        squares = dict.fromkeys(draws, 0.0)
        norms: dict[int, dict[str, float]] = {}
        for doc in sorted(set().union(*times.values())):
            norms[doc] = self._backward(query, [positive, negatives[doc]])
            on_gradient()
            for kind, counted in times.items():
                if count := counted[doc]:
                    weight = weight_of[kind][doc]
                    squares[kind] += count * (weight * norms[doc]["all"]) ** 2
                    for total, parameter in zip(sums[kind], self._parameters, strict=True):
                        if parameter.grad is not None:
                            total.add_(parameter.grad, alpha=count * weight)
        return Gradients(norms, *_moments(sums, squares, draws))

    def _backward(self, query: str, passages: Sequence[str]) -> dict[str, float]:
        """Leave the gradient of l(positive, negative) in the parameters; returns its norms."""
        self._dual.zero_grad(set_to_none=True)
        queries, rows = self._tokenizer([query], "query"), self._tokenizer(passages, "passage")
        _, rows_of = rows_of_docs(np.arange(len(passages)), rows)
        inputs = [
            torch.from_numpy(array).to(self._device)
            for table, side in ((queries, "query"), (rows, "passage"))
            for array in table.padded(
                np.arange(table.num_rows), self._tokenizer.pad_id_of(side)  # type: ignore[arg-type]
            )
        ]
        q, d = self._dual(*inputs)
        scores = doc_scores(q, d, torch.from_numpy(rows_of).to(self._device))
        self._loss(scores).backward()  # type: ignore[no-untyped-call]
        found = group_norms(self._groups)
        return {**found, "all": float(np.linalg.norm(list(found.values())))}


def _moments(
    sums: Mapping[str, list[torch.Tensor]], squares: Mapping[str, float], draws: Mapping[str, Draws]
) -> tuple[dict[str, Moments], float]:
    counts = {kind: len(found.docs) for kind, found in draws.items()}

    def inner(first: str, second: str) -> float:
        parts = zip(sums[first], sums[second], strict=True)
        return sum(float((a * b).sum(dtype=torch.float64)) for a, b in parts)

    reference = squared_mean(squares[ORACLE], inner(ORACLE, ORACLE), counts[ORACLE])
    found = {}
    for kind in draws:
        square_sum = inner(kind, kind)
        product = inner(kind, ORACLE) / (counts[kind] * counts[ORACLE])
        moments = drawn(squares[kind], square_sum, counts[kind], product, reference)
        found[kind] = moments._replace(bias=0.0) if kind == ORACLE else moments
    return found, reference
