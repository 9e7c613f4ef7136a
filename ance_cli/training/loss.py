"""Losses over the scores of a positive and its negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def nll(scores: Tensor) -> Tensor:
    """Negative log likelihood of the positive against its negatives (arXiv Eq. 5).

    `scores` (B, 1 + n), the positive first: mean over B of
    -log(exp(s+) / (exp(s+) + sum_j exp(s-_j))).
    """
    target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return functional.cross_entropy(scores, target)


def pair_scores(queries: Tensor, rows: Tensor, rows_of: Tensor) -> Tensor:
    """(B, 1 + n) scores f(q, d) = max over the document's rows of q . row (FirstP has one row).

    `queries` (B, d); `rows` (R, d); `rows_of` (B, 1 + n, S) int64 row numbers, -1 where a document
    has fewer than S rows.
    """
    scores = torch.einsum("bd,bnsd->bns", queries, rows[rows_of.clamp(min=0)])
    return scores.masked_fill(rows_of < 0, float("-inf")).amax(-1)
