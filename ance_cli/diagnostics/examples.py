"""True gradients of single negatives: dl(d+, d-) / d theta over all parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ance_cli.diagnostics.corpus_scores import PairLoss
from ance_cli.diagnostics.pair import OracleDraws
from ance_cli.diagnostics.theory import Moments, drawn, squared_mean
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import load_dual
from ance_cli.models.tokens import Tokenizer
from ance_cli.training.data import rows_of_docs
from ance_cli.training.gradients import group_norms, layer_groups
from ance_cli.training.loss import LOSSES, doc_scores


@dataclass(frozen=True)
class Gradients:
    """The gradients of one pair's drawn negatives.

    `norms` position -> group of parameters -> norm of l's gradient; the group `all` is all
    parameters. `moments` kind -> moments of the sampler's weighted estimator; `mean` |G|^2. Both
    are estimated from the oracle's draws.
    """

    norms: dict[int, dict[str, float]]
    moments: dict[str, Moments]
    mean: float


class ExampleGradients:
    """An encoder in float32, without dropout, that differentiates l(d+, d-) for one d- at a time.

    Memory in addition to the model: one gradient, and one more for each sampler whose support is
    not the whole corpus.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, loss: PairLoss) -> None:
        self._dual = load_dual(checkpoint).to(device)
        self._tokenizer = Tokenizer(checkpoint)
        self._device = device
        self._loss = lambda scores: LOSSES[loss.name](scores * loss.scale, loss.margin)
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
        oracle: OracleDraws,
        on_gradient: Callable[[], None] = lambda: None,
    ) -> Gradients:
        """The gradients of all `negatives`, position -> text; each is differentiated once.

        The moments of each sampler are estimated from the oracle's draws, which are among
        `negatives` (`theory.drawn`).
        """
        draws, densities = oracle.draws, oracle.densities
        weight_of: Counter[int] = Counter()
        for doc, weight in zip(draws.docs.tolist(), draws.weights.tolist(), strict=True):
            weight_of[doc] += weight
        missed = {kind: {*draws.docs[found == 0].tolist()} for kind, found in densities.items()}
        total = _zeros(self._parameters)
        outside = {kind: _zeros(self._parameters) for kind, docs in missed.items() if docs}
        norms: dict[int, dict[str, float]] = {}
        for doc, text in negatives.items():
            norms[doc] = self._backward(query, [positive, text])
            on_gradient()
            if doc in weight_of:
                for sums in (total, *(outside[kind] for kind in outside if doc in missed[kind])):
                    for part, parameter in zip(sums, self._parameters, strict=True):
                        if parameter.grad is not None:
                            part.add_(parameter.grad, alpha=weight_of[doc])
        squares = np.array([norms[doc]["all"] ** 2 for doc in draws.docs.tolist()])
        nothing = [torch.zeros((), device=self._device)] * len(total)
        moments = {}
        for kind, found in densities.items():
            left = outside.get(kind, nothing)
            inside = [whole - part for whole, part in zip(total, left, strict=True)]
            moments[kind] = drawn(squares, draws.weights, found, _square(inside), _square(left))
        weighted = float((squares * draws.weights**2).sum())
        return Gradients(norms, moments, squared_mean(weighted, _square(total), len(draws.docs)))

    def _backward(self, query: str, passages: Sequence[str]) -> dict[str, float]:
        """Put the gradient of l(positive, negative) into the parameters; returns its norms."""
        self._dual.zero_grad(set_to_none=True)
        queries, rows = self._tokenizer([query], "query"), self._tokenizer(passages, "passage")
        _, rows_of = rows_of_docs(np.arange(len(passages)), rows)
        inputs = [
            torch.from_numpy(array).to(self._device)
            for table, side in ((queries, "query"), (rows, "passage"))
            for array in table.padded(
                np.arange(table.num_rows),
                self._tokenizer.pad_id_of(side),  # type: ignore[arg-type]
            )
        ]
        q, d = self._dual(*inputs)
        scores = doc_scores(q, d, torch.from_numpy(rows_of).to(self._device))
        self._loss(scores).backward()  # type: ignore[no-untyped-call]
        found = group_norms(self._groups)
        return {**found, "all": float(np.linalg.norm(list(found.values())))}


def _zeros(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros_like(parameter) for parameter in parameters]


def _square(vector: Sequence[torch.Tensor]) -> float:
    return sum(float(part.double().square().sum()) for part in vector)
