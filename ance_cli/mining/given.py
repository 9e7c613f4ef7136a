"""The source `given`: negatives that came with the data, in `negatives/SPLIT.jsonl`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ance_cli.call import SkippedLines
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import Dataset, existing_file
from ance_cli.formats.negatives_file import read_negatives
from ance_cli.mining.mining_data import MiningData
from ance_cli.mining.pool import RankedLists


def given_negatives(dataset: Dataset) -> Path:
    """The negatives of a dataset's split; `UsageProblem` if it came without any."""
    qrels = dataset.need("qrels")
    folder = qrels.parent.parent / "negatives"
    if dataset.split and (path := existing_file(folder, dataset.split, ".jsonl")):
        return path
    raise UsageProblem(
        f"--mix given: the dataset of {qrels} has no negatives/{dataset.split or 'SPLIT'}.jsonl",
        hint="`ance import` writes it for data that has negatives; draw from other sources instead",
    )


def given_lists(dataset: Dataset, data: MiningData, skipped: SkippedLines | None) -> RankedLists:
    """For each query, the negatives of all of its pairs, in the order of the file."""
    position = data.duplicates.position
    docs_of: dict[str, dict[int, None]] = {}
    path = given_negatives(dataset)
    for pair in read_negatives(path, data.queries, position, data.positives, skipped):
        found = docs_of.setdefault(pair.query_id, {})
        found.update(dict.fromkeys(position[doc_id] for doc_id in pair.negative_ids))
    docs = np.full((len(docs_of), max(map(len, docs_of.values()), default=0)), -1, np.int32)
    for row, found in enumerate(docs_of.values()):
        docs[row, : len(found)] = list(found)
    return RankedLists(docs, None, {query_id: row for row, query_id in enumerate(docs_of)})
