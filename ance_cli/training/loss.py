"""From vectors to scores, from scores to a loss.

A row of scores belongs to one query: first its positive, then its negatives. -inf marks an absent
entry, which has no part in a loss and no gradient. Every loss is the mean over the rows; a query
without any negative counts as 0.

A new loss is one function and one entry in `LOSSES` (or `DISTILLATIONS`); its name is declared in
`config/sets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ance_cli.config import TrainConfig
from ance_cli.config.sets import Distill, InBatch, LossName
from ance_cli.models.matryoshka import cut

ABSENT = float("-inf")


def doc_scores(queries: Tensor, rows: Tensor, rows_of: Tensor) -> Tensor:
    """(B, D) scores f(q, d) = max over the document's rows of q . row.

    `queries` (B, d); `rows` (R, d); `rows_of` (D, S) int64 row numbers, -1 if a document has fewer
    than S rows. Every document has at least one row: FirstP exactly one, MaxP up to S segments
    (ICLR Sec. 5).
    """
    scores = queries @ rows.T  # (B, R)
    if rows_of.shape[1] == 1:
        return scores[:, rows_of[:, 0]]
    by_segment = scores[:, rows_of.clamp(min=0)]  # (B, D, S)
    return by_segment.masked_fill(rows_of < 0, ABSENT).amax(-1)


def scores_by_width(
    queries: Tensor, rows: Tensor, rows_of: Tensor, widths: Sequence[int], is_cosine: bool
) -> list[Tensor]:
    """The `doc_scores` of the vectors cut to each of `widths`.

    The loss is the mean over the widths of each one's loss: Matryoshka's sum with equal weights
    (Kusupati et al., 2022, Eq. 1), which add up to 1 so that the loss keeps its size.
    """
    return [
        doc_scores(cut(queries, width, is_cosine), cut(rows, width, is_cosine), rows_of)
        for width in widths
    ]


def with_batch_negatives(
    scores: Tensor, members: Tensor, banned: Tensor, mode: InBatch, picks: Tensor | None = None
) -> Tensor:
    """(B, 1 + n + m) scores of each query's positive, its own negatives and m documents of the
    batch.

    `scores` (B, D) over every document of the batch, which may be gathered from all ranks;
    `members` (B, 1 + n) int64 columns of the query's own documents, positive first, -1 if it has
    fewer; `banned` (B, D) bool, the columns that are no negatives of the query: all its known
    positives, its own one among them, and their copies. `mode` says what is added:

    - `none`: nothing;
    - `all`: every document that is not banned, each once (the own negatives are among them);
    - `hardest`: the highest-scoring document that is neither banned nor a member (the paper's NCE
      Neg, the hardest in the global batch);
    - `random`: one such document, drawn uniformly: of k allowed documents, in the order of the
      columns, number floor(pick * k), with `picks` (B,) float64 in [0, 1).

    If no document is allowed, the added entry is absent.
    """
    if mode == "all":
        positive = scores.gather(1, members[:, :1])
        return torch.cat([positive, scores.masked_fill(banned, ABSENT)], 1)
    missing = members < 0
    columns = torch.where(missing, members[:, :1], members)
    own = scores.gather(1, columns).masked_fill(missing, ABSENT)  # (B, 1 + n)
    if mode == "none":
        return own
    allowed = (~banned).scatter(1, columns, False)  # (B, D)
    num_allowed = allowed.sum(1, keepdim=True)
    if mode == "hardest":
        added = scores.detach().masked_fill(~allowed, ABSENT).argmax(1, keepdim=True)
    elif mode == "random" and picks is not None:
        number = (picks.unsqueeze(1) * num_allowed).long()
        added = torch.searchsorted(allowed.cumsum(1), number + 1)  # the column of that number
        added = added.clamp(max=scores.shape[1] - 1)
    else:
        raise ValueError(f"negatives of the batch {mode!r}, picks {picks}")
    return torch.cat([own, scores.gather(1, added).masked_fill(num_allowed == 0, ABSENT)], 1)


@torch.no_grad()
def likely_positives(scores: Tensor, members: Tensor, margin: float) -> Tensor:
    """(B, D) bool: the documents of other queries that score above the query's positive + `margin`.

    `scores` (B, D), before any scale, and `members` (B, 1 + n) as `with_batch_negatives` takes
    them; the query's own documents are never among them. Negatives that score so high are often
    positives without a label (Zhang et al., 2025, Qwen3 Embedding, with a margin of 0.1).
    """
    columns = torch.where(members < 0, members[:, :1], members)
    positive = scores.gather(1, columns[:, :1])
    return (scores > positive + margin).scatter(1, columns, False)


def nll(scores: Tensor) -> Tensor:
    """Negative log likelihood of the positive against its negatives (arXiv Eq. 5).

    `scores` (B, 1 + n): mean over B of -log(exp(s+) / (exp(s+) + sum_j exp(s-_j))).
    """
    target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return functional.cross_entropy(scores, target)


def pairwise(scores: Tensor) -> Tensor:
    """Logistic loss of each pair: mean over the negatives of log(1 + exp(s- - s+)).

    `scores` (B, 1 + n). With one negative it is the `nll`.
    """
    positive, negatives, present = _split(scores)
    return _mean(-functional.logsigmoid(positive - negatives), present)


def bce(scores: Tensor) -> Tensor:
    """Binary cross entropy of each document by itself; both classes have the same weight.

    `scores` (B, 1 + n): log(1 + exp(-s+)) + mean over the negatives of log(1 + exp(s-)).
    """
    positive, negatives, present = _split(scores)
    terms = -functional.logsigmoid(positive) - functional.logsigmoid(-negatives)
    return _mean(terms, present)


def hinge(scores: Tensor, margin: float) -> Tensor:
    """Pairwise hinge: mean over the negatives of max(0, margin - s+ + s-); `scores` (B, 1 + n)."""
    positive, negatives, present = _split(scores)
    return _mean(functional.relu(margin - positive + negatives), present)


def margin_mse(scores: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the margins: mean over the negatives of ((s+ - s-) - (t+ - t-))^2.

    `scores` and `teacher` (B, 1 + n). Documents that the teacher did not score are NaN in
    `teacher` and are left out; a query whose positive has no teacher's score counts as 0
    (Hofstaetter et al., 2020).
    """
    scored = ~teacher.isnan()
    teacher = teacher.masked_fill(~scored, 0.0)
    positive, negatives, present = _split(scores)
    error = (positive - negatives) - (teacher[:, :1] - teacher[:, 1:])
    return _mean(error.square(), present & scored[:, 1:] & scored[:, :1])


def kl(scores: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(scores)) over the entries that both have.

    `scores` and `teacher` (B, 1 + n). Documents that the teacher did not score are NaN in
    `teacher` and are left out; a query whose positive has no teacher's score counts as 0.
    """
    scored = ~teacher.isnan()
    present = (scores != ABSENT) & scored & scored[:, :1]
    present[:, 0] = True  # a row without negatives keeps its positive, whose KL is 0
    teacher = teacher.masked_fill(~scored, 0.0).masked_fill(~present, ABSENT)
    found = functional.log_softmax(scores.masked_fill(~present, ABSENT), 1)
    expected = functional.softmax(teacher, 1)
    return functional.kl_div(found.masked_fill(~present, 0.0), expected, reduction="batchmean")


def _split(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positives (B, 1), negatives (B, n) with 0 for absent ones, and which are present (B, n).

    Compares with -inf instead of testing for finite values: a NaN of a diverged model must reach
    the loss.
    """
    present = scores[:, 1:] != ABSENT
    return scores[:, :1], scores[:, 1:].masked_fill(~present, 0.0), present


def _mean(terms: Tensor, present: Tensor) -> Tensor:
    """Mean over the queries of the mean over the present terms (B, n), 0 if a query has none."""
    sums = terms.masked_fill(~present, 0.0).sum(1)
    return (sums / present.sum(1).clamp(min=1)).mean()


LOSSES: dict[LossName, Callable[[Tensor, float], Tensor]] = {
    "nll": lambda scores, margin: nll(scores),
    "pairwise": lambda scores, margin: pairwise(scores),
    "bce": lambda scores, margin: bce(scores),
    "hinge": hinge,
}
"""loss(scores (B, 1 + n), margin) by name; only `hinge` has a margin."""

DISTILLATIONS: dict[Distill, Callable[[Tensor, Tensor], Tensor]] = {
    "margin-mse": margin_mse,
    "kl": kl,
}
"""distillation(scores, teacher), both (B, 1 + n), by name."""


@dataclass(frozen=True)
class LossInputs:
    """What the loss of some queries takes besides their scores, on the device (see `Batch`).

    Only `members` is needed without negatives from the batch and without a teacher.
    """

    members: Tensor
    teacher: Tensor | None = None
    banned: Tensor | None = None
    picks: Tensor | None = None


def batch_loss(scores: Tensor, inputs: LossInputs, config: TrainConfig, scale: float) -> Tensor:
    """The mean loss of the queries.

    `scores` (B, D) of each query with each document of the batch, before `scale`. The loss is
    (1 - w) * l + w * distillation with w = `distill_weight`. Only a query's own members have a
    teacher's score, so the distillation is over those.
    """
    scores = scores * scale
    total = scores.new_zeros(())
    if not config.distill or config.distill_weight < 1:
        banned = inputs.banned
        if banned is None:
            banned = torch.zeros_like(scores, dtype=torch.bool)
        compared = with_batch_negatives(
            scores, inputs.members, banned, config.in_batch, inputs.picks
        )
        total = LOSSES[config.loss](compared, config.margin)
    if config.distill and inputs.teacher is not None:
        own = torch.gather(scores, 1, inputs.members)
        distillation = DISTILLATIONS[config.distill](own, inputs.teacher)
        total = (1 - config.distill_weight) * total + config.distill_weight * distillation
    return total
