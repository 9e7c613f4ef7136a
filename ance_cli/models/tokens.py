"""From texts to token rows, by the tokenizer and the pins of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ance_cli.errors import BadInput
from ance_cli.models.checkpoint import Checkpoint, Side
from ance_cli.models.tower import Tower


@dataclass(frozen=True)
class TokenRows:
    """Ragged rows of token ids.

    `ids` (tokens,) int32; `offsets` (rows + 1,) int64; `row_counts` (texts,) int32: how many
    adjacent rows each text has (1 for queries and FirstP, up to `max_segments` for MaxP).
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    row_counts: npt.NDArray[np.int32]

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """(texts,) the first row of each text."""
        return np.cumsum(self.row_counts, dtype=np.int64) - self.row_counts

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) tokens of each row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[np.int32]:
        """The token ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def padded(
        self, rows: Sequence[int] | npt.NDArray[np.int64], pad_id: int, multiple: int = 8
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token ids and attention mask (rows, width), int64, of the chosen rows.

        The width is the longest row's, rounded up to a multiple, so that few shapes occur.
        """
        chosen = np.asarray(rows)
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        width = -(-int(lengths.max()) // multiple) * multiple
        token_ids = np.full((len(rows), width), pad_id, np.int64)
        for place, index in enumerate(rows):
            token_ids[place, : lengths[place]] = self.row(int(index))
        return token_ids, (np.arange(width) < lengths[:, None]).astype(np.int64)


def join_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """One `TokenRows` out of several, in order."""
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TokenRows(
        np.concatenate([part.ids for part in parts]),
        offsets,
        np.concatenate([part.row_counts for part in parts]),
    )


def _load_tokenizer(tower: Tower) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tower.backbone, use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for broken files
        raise BadInput(
            f"{tower.shown}: the tokenizer does not load ({error})",
            hint="copy the whole folder again",
        ) from error


class Tokenizer:
    """Tokenises the queries and the passages of a checkpoint, each as their own tower does."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.pins = checkpoint.pins
        passage = _load_tokenizer(checkpoint.tower("passage"))
        query = passage if checkpoint.shared else _load_tokenizer(checkpoint.tower("query"))
        self._tokenizers: dict[Side, Any] = {"query": query, "passage": passage}

    @cached_property
    def _working(self) -> dict[Side, Any]:
        """The tokenizers that make rows. A call leaves its length in them, and what is saved has to
        be what was loaded, whatever was tokenised before: a tower's hash covers it."""
        return deepcopy(self._tokenizers)

    def pad_id_of(self, side: Side) -> int:
        """The token that fills the rows of one side."""
        return int(self._tokenizers[side].pad_token_id or 0)

    def __call__(self, texts: Sequence[str], side: Side) -> TokenRows:
        """Token rows of `texts`: cut to the side's length, or for MaxP passages to segments."""
        pins = self.pins
        prefix = pins.query_prefix if side == "query" else pins.passage_prefix
        texts = [f"{prefix}{text}".strip() for text in texts]
        if pins.lowercase:
            texts = [text.lower() for text in texts]
        length = pins.query_length if side == "query" else pins.passage_length
        segments = pins.segments if side == "passage" else 1
        sliced = segments > 1 and pins.segmentation == "slice"
        found = self._working[side](
            texts,
            truncation=True,
            max_length=length * segments if sliced else length,
            return_overflowing_tokens=segments > 1 and not sliced,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows = found["input_ids"]
        if sliced:
            cut = [[row[at : at + length] for at in range(0, len(row), length)] for row in rows]
            return _ragged([piece for pieces in cut for piece in pieces], [len(c) for c in cut])
        if segments == 1:
            return _ragged(rows, [1] * len(texts))
        owner = np.asarray(found["overflow_to_sample_mapping"])
        starts = np.searchsorted(owner, np.arange(len(texts)))
        nth = np.arange(len(owner)) - starts[owner]  # which segment of its text a row is
        rows = [row for row, segment in zip(rows, nth, strict=True) if segment < segments]
        return _ragged(rows, np.minimum(np.bincount(owner, minlength=len(texts)), segments))

    def save(self, folder: str, side: Side) -> None:
        """Write the files of one tower's tokenizer into a checkpoint that is being built."""
        self._tokenizers[side].save_pretrained(folder)


def _ragged(
    rows: Sequence[Sequence[int]], row_counts: Sequence[int] | npt.NDArray[np.int64]
) -> TokenRows:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter((token for row in rows for token in row), np.int32, int(offsets[-1]))
    return TokenRows(ids, offsets, np.asarray(row_counts, np.int32))
