"""How the vectors of embeddings are stored: as floats, as integers of 8 bits, or as bits.

Every format keeps a vector in one row of fixed size, which depends on that vector alone. So any
process may write any block, and nothing has to be learned from the corpus first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ance_cli.config.sets import OutputDtype

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[Any]


class RowFormat(Protocol):
    """One way to store vectors."""

    row: np.dtype[Any]
    """Type of one row, with its shape if that is an array."""
    rounds: bool
    """Whether vectors are rounded to something else than floats."""

    def stored(self, vectors: Floats) -> Rows:
        """(n,) rows of (n, d) finite vectors."""

    def floats(self, rows: Rows) -> Floats:
        """(n, d) the vectors that the rows stand for."""


class FloatRows:
    """Floats of 16 or 32 bits."""

    rounds = False

    def __init__(self, name: str, dim: int) -> None:
        self.row = np.dtype((name, (dim,)))

    def stored(self, vectors: Floats) -> Rows:
        return np.ascontiguousarray(vectors, self.row.base)

    def floats(self, rows: Rows) -> Floats:
        return rows


class Int8Rows:
    """Linear quantisation, symmetric, with a scale for each row: the vector is `scale * codes`.

    The scale is the greatest magnitude of the row's components / 127, so none of them is off by
    more than half of it.
    """

    rounds = True

    def __init__(self, dim: int) -> None:
        self.row = np.dtype([("scale", "<f4"), ("codes", "i1", (dim,))])

    def stored(self, vectors: Floats) -> Rows:
        rows = np.empty(len(vectors), self.row)
        rows["scale"] = scale = np.abs(vectors).max(1) / np.float32(127)
        codes = vectors / np.where(scale > 0, scale, 1)[:, None]
        rows["codes"] = np.rint(codes).clip(-127, 127)  # a subnormal scale is not exact
        return rows

    def floats(self, rows: Rows) -> Floats:
        vectors: Floats = rows["codes"] * rows["scale"][:, None]
        return vectors


class BinaryRows:
    """The sign of each component, eight in a byte, the first in the highest bit (the `ubinary` of
    sentence-transformers): 1 stands for +1, and 0 for -1.

    The inner product of a query that is not rounded with such a vector is the score by which Yamada
    et al. (2021, Sec. 3) rank the candidates again that they find by Hamming distance.
    """

    rounds = True

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.row = np.dtype(("u1", (-(-dim // 8),)))

    def stored(self, vectors: Floats) -> Rows:
        return np.packbits(vectors > 0, axis=1)

    def floats(self, rows: Rows) -> Floats:
        vectors = np.unpackbits(rows, axis=1, count=self._dim).astype(np.float32)
        vectors *= 2
        vectors -= 1
        return vectors


ROW_FORMATS: Mapping[OutputDtype, Callable[[int], RowFormat]] = {
    "float16": partial(FloatRows, "<f2"),
    "float32": partial(FloatRows, "<f4"),
    "int8": Int8Rows,
    "binary": BinaryRows,
}
"""dtype -> the format of vectors of a dimension."""
