"""The original ANCE code's `ann_training_data_N`: negatives by the places that its data have.

Its preprocessing deals the lines of `collection.tsv` and of `queries.train.tsv` out to 32 files and
joins these one after the other; it leaves out queries without a label. A place in what comes out is
all that a line of `ann_training_data_N` holds (`data/msmarco_data.py` in microsoft/ANCE).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

_FILES = 32

TRAINING_DATA = "ann_training_data_0"
MEASURES = "ann_ndcg_0"
"""Its trainer looks for this one, and takes the other with the same number."""


def dealt(ids: Sequence[str]) -> Iterator[str]:
    """The lines of a file in the order in which ANCE's preprocessing leaves them."""
    for first in range(_FILES):
        for number in range(first, len(ids), _FILES):
            yield ids[number]


def line_of(query: int, positive: int, negatives: Sequence[int]) -> bytes:
    """`query <tab> positive <tab> negative,negative,...`, all of them places."""
    return f"{query}\t{positive}\t{','.join(map(str, negatives))}\n".encode()


def measures(step: int) -> bytes:
    """Files next to the negatives: the trainer takes a step from the digits of `checkpoint`, and
    logs `ndcg`, which an export does not measure."""
    return orjson.dumps({"ndcg": 0.0, "checkpoint": f"checkpoint-{step}"})
