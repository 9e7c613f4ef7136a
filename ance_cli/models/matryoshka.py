"""Vectors whose first dimensions are vectors by themselves (Kusupati et al., 2022)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cut(vectors: Tensor, width: int, is_cosine: bool) -> Tensor:
    """(n, width): the first dimensions of (n, d) vectors, for cosine scaled to length one again.

    At their full width the vectors stay as they are.
    """
    if width == vectors.shape[1]:
        return vectors
    first = vectors[:, :width]
    # as if they had been stored so: the length is measured in 32 bits
    return functional.normalize(first.float(), dim=1).to(first.dtype) if is_cosine else first
