"""What an export needs of a vector database, and what it writes to one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ance_cli.errors import UsageProblem

Vector = npt.NDArray[np.float32]
Facts = dict[str, str]
"""What a collection says of its vectors: `checkpoint` (the hash of the passage tower that made
them, with its settings of the text), `dim`, and `distance` (dot or cosine)."""


class Point(NamedTuple):
    """What is stored with a vector: a document, or one segment of it (MaxP)."""

    id: str
    """The document id; of a segment `DOC_ID#NUMBER`, as pyserini names it."""
    doc_id: str
    segment: int
    title: str
    text: str
    checkpoint: str
    """As in `Facts`: files have no other place for it."""

    @property
    def payload(self) -> dict[str, Any]:
        """The fields next to the id."""
        fields = self._asdict()
        del fields["id"]
        return fields


@dataclass(frozen=True)
class Batch:
    """Points and their vectors, (points, dim) float32."""

    points: list[Point]
    vectors: npt.NDArray[np.float32]

    def rows(self) -> Iterator[tuple[Point, Vector]]:
        """Yield each point with its vector."""
        return zip(self.points, self.vectors, strict=True)


class Store(Protocol):
    """One collection (table, index) of a database, which may not exist yet.

    Raises whatever the database's client raises.
    """

    def facts(self) -> Facts | None:
        """What the collection says of its vectors; None if there is no collection.

        Facts that the database does not show are missing; a collection that ance did not make has
        none.
        """

    def create(self, facts: Facts) -> None:
        """Make the collection for vectors of this dimension and distance."""

    def drop(self) -> None:
        """Remove the collection with all that is in it."""

    def upsert(self, batches: Iterator[Batch]) -> None:
        """Write the points, in place of those that have the same ids."""

    def count(self) -> int:
        """The number of points in the collection."""

    def close(self) -> None:
        """Close the connection, or the files of an embedded database."""


def client(module: str, extra: str) -> Any:
    """The module of a database's client; `UsageProblem` names the extra if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageProblem(
            f"writing to {extra} needs its client {module.split('.')[0]}, which is not installed",
            hint=f"pip install 'ance-cli[{extra}]', or write a file with -o",
        ) from error
