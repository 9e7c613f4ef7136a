"""The original ANCE code's `ann_training_data_N`: negatives as positions in its preprocessed data.

Its preprocessing distributes the lines of `collection.tsv` and of `queries.train.tsv` round-robin
to 32 files, drops queries without a label, and concatenates the files. The lines of
`ann_training_data_N` contain positions in the result (`data/msmarco_data.py` in microsoft/ANCE).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

_FILES = 32

TRAINING_DATA = "ann_training_data_0"
MEASURES = "ann_ndcg_0"
"""Its trainer looks for this file, and then reads the training data with the same number."""


def preprocessed_order(ids: Sequence[str]) -> Iterator[str]:
    """The ids of a file in the order of ANCE's preprocessed data."""
    for first in range(_FILES):
        for number in range(first, len(ids), _FILES):
            yield ids[number]


def line_of(query: int, positive: int, negatives: Sequence[int]) -> bytes:
    """`query <tab> positive <tab> negative,negative,...`, all as positions."""
    return f"{query}\t{positive}\t{','.join(map(str, negatives))}\n".encode()


def measures(step: int) -> bytes:
    """The file of measures: the trainer takes the step from the digits of `checkpoint`, and logs
    `ndcg`, which an export does not measure."""
    return orjson.dumps({"ndcg": 0.0, "checkpoint": f"checkpoint-{step}"})
