"""A dataset merged from several: its ids begin with the name of their dataset, and `datasets.json`
lists each dataset's share of the training pairs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from ance_cli.errors import BadInput
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset, checked_id
from ance_cli.formats.records import read_record

DATASETS = "datasets.json"


def merged_id(name: str, own_id: str) -> str:
    """The id that a document or query of the dataset `name` has in a merged dataset."""
    return f"{name}/{own_id}"


def dataset_name_of(merged: str) -> str:
    """The name of the dataset that an id of a merged dataset belongs to."""
    return merged.partition("/")[0]


def owners(doc_ids: Sequence[str], names: Collection[str]) -> npt.NDArray[np.int16]:
    """The position in `names` of the dataset of each id, (ids,) int16.

    Raises `BadInput` for an id that belongs to none of the datasets.
    """
    positions = {name: position for position, name in enumerate(names)}
    found = (positions.get(dataset_name_of(doc_id), -1) for doc_id in doc_ids)
    owner = np.fromiter(found, np.int16, len(doc_ids))
    if (strangers := np.flatnonzero(owner < 0)).size:
        raise BadInput(
            f"the id {doc_ids[strangers[0]]!r} belongs to none of the datasets {', '.join(names)}",
            hint=f"ids of a merged dataset are NAME/ID, with a NAME that {DATASETS} lists",
        )
    return owner


def write_shares(folder: Path, shares: Mapping[str, float]) -> None:
    """Write `datasets.json` into the folder of a merged dataset."""
    listed = [{"name": name, "share": share} for name, share in shares.items()]
    atomic.write_bytes(folder / DATASETS, orjson.dumps(listed, option=orjson.OPT_INDENT_2) + b"\n")


@dataclass(frozen=True)
class _Share:
    name: str
    share: float


def read_shares(dataset: Dataset) -> dict[str, float] | None:
    """name -> share for each part of a merged dataset; the shares add up to one.

    Reads `datasets.json` next to the corpus; None if there is no such file. Raises `BadInput` if
    the file is broken.
    """
    path = dataset.corpus.parent / DATASETS
    try:
        listed = read_record(path, list[_Share], _SHARES_LOOK_LIKE)
    except FileNotFoundError:
        return None
    if not listed:
        raise BadInput(f"{path}: lists no dataset", hint=_SHARES_LOOK_LIKE)
    shares: dict[str, float] = {}
    for entry in listed:
        if "/" in checked_id(entry.name, str(path)):
            raise BadInput(
                f"{path}: {entry.name!r} cannot be the name of a dataset: it contains a /",
                hint=_SHARES_LOOK_LIKE,
            )
        if entry.name in shares:
            raise BadInput(
                f"{path}: lists the dataset {entry.name!r} twice", hint=_SHARES_LOOK_LIKE
            )
        if entry.share < 0:
            raise BadInput(
                f"{path}: the share of {entry.name!r} is {entry.share:g}, expected 0 or more",
                hint=_SHARES_LOOK_LIKE,
            )
        shares[entry.name] = entry.share
    total = sum(shares.values())
    if not 0 < total < math.inf:
        raise BadInput(f"{path}: the shares add up to {total:g}", hint=_SHARES_LOOK_LIKE)
    return {name: share / total for name, share in shares.items()}


_SHARES_LOOK_LIKE = 'the file looks like [{"name": "a", "share": 0.7}, {"name": "b", "share": 0.3}]'
