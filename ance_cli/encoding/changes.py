"""What has changed between the corpus of some embeddings and the one that is to be encoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.tokens import TokenCache


@dataclass(frozen=True)
class Changes:
    """Numbers of documents."""

    added: int
    changed: int
    removed: int
    kept: int

    def __str__(self) -> str:
        return (
            f"documents: {self.added:,} added, {self.changed:,} changed, {self.removed:,} removed, "
            f"{self.kept:,} kept"
        )


def compare(
    earlier: Embeddings, tokens: TokenCache, hashes: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], Changes]:
    """(rows,) the earlier row that each row of the tokens has, -1 = none; and the changes.

    A document keeps its rows if one of the same id had the same tokens. `hashes` (documents,) are
    those of the tokens.
    """
    places = {doc_id: place for place, doc_id in enumerate(earlier.ids)}
    found = (places.get(doc_id, -1) for doc_id in tokens.doc_ids())
    source = np.fromiter(found, np.int64, tokens.num_docs)
    is_old = source >= 0
    is_kept = is_old & (earlier.doc_hashes()[source] == hashes)
    offsets = tokens.doc_offsets
    # both documents have the same number of rows: the hash covers it
    shift = np.where(is_kept, earlier.doc_offsets[source] - offsets[:-1], 0)
    counts = np.diff(offsets)
    rows = np.arange(tokens.num_rows) + np.repeat(shift, counts)
    rows[~np.repeat(is_kept, counts)] = -1
    num_old, num_kept = int(is_old.sum()), int(is_kept.sum())
    changes = Changes(
        added=tokens.num_docs - num_old,
        changed=num_old - num_kept,
        removed=earlier.num_docs - num_old,
        kept=num_kept,
    )
    return rows, changes
