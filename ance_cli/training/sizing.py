"""What a run does with its data, reckoned before it begins: lengths, cut texts, epochs, FLOPs.

Everything is reckoned from a sample of the texts: those whose ids have the smallest hashes, so that
every call finds the same ones.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from ance_cli.call import SkippedLines
from ance_cli.config import TrainConfig
from ance_cli.config.sets import Side
from ance_cli.config.setting import flag_of
from ance_cli.formats.dataset import (
    Dataset,
    Passage,
    Query,
    positives_of,
    read_corpus,
    read_qrels,
    read_query_records,
)
from ance_cli.formats.tokens import TokenRows
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    from ance_cli.models.flops import Products

SAMPLE_SIZE = 1_000
LONGEST = 512
"""The longest texts that a run chooses by itself: attention takes the square of it."""
MOST_EPOCHS = 20
MOST_CUT = 0.1
"""Epochs over the pairs, and share of the texts that are cut, above which a run warns."""

_COVERED: dict[Side, float] = {"query": 0.99, "passage": 0.95}
"""Share of the texts that a chosen length leaves whole. Batches are as wide as their longest text,
and queries are a small part of them."""
_DRAWN_BATCHES = 64
_NAMES: dict[Side, str] = {"query": "queries", "passage": "passages"}

Ints = npt.NDArray[np.int64]
Record = TypeVar("Record", Passage, Query)


class DataSample:
    """How many documents and pairs a dataset has, and some of its texts; read when they are first
    asked for.

    Raises `BadInput` then if the data is broken.
    """

    def __init__(self, dataset: Dataset, min_rel: int, skipped: SkippedLines | None) -> None:
        self._dataset, self._min_rel, self._skipped = dataset, min_rel, skipped

    @cached_property
    def _corpus(self) -> tuple[int, list[Passage]]:
        return _counted_sample(read_corpus(self._dataset.corpus, self._skipped))

    @cached_property
    def _positives(self) -> dict[str, list[str]]:
        qrels = read_qrels(self._dataset.need("qrels"), skipped=self._skipped)
        return positives_of(qrels, self._min_rel)

    @property
    def num_docs(self) -> int:
        return self._corpus[0]

    @property
    def passages(self) -> list[Passage]:
        return self._corpus[1]

    @property
    def num_pairs(self) -> int:
        """The pairs of a query and a positive."""
        return sum(map(len, self._positives.values()))

    @cached_property
    def queries(self) -> list[str]:
        """Texts of queries that have a positive."""
        found = read_query_records(self._dataset.need("queries"), self._skipped)
        trained = (query for query in found if query.query_id in self._positives)
        return [query.text for query in _counted_sample(trained)[1]]


def _counted_sample(records: Iterable[Record]) -> tuple[int, list[Record]]:
    """How many records there are, and those whose ids have the smallest hashes."""
    count = itertools.count()
    counted = (record for record, _ in zip(records, count, strict=False))
    found = heapq.nsmallest(SAMPLE_SIZE, counted, key=lambda each: _hash(each[0]))
    return next(count), found


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def length_for(side: Side, tokens: npt.NDArray[Any], most: int) -> int:
    """The length that leaves `_COVERED` of the texts whole, as a multiple of 8, but at most `most`
    and `LONGEST`.

    `tokens` (texts,) are their tokens before they are cut.
    """
    needed = int(np.quantile(tokens, _COVERED[side], method="inverted_cdf"))
    return min(-(-needed // 8) * 8, most, LONGEST)


def texts_of(start: Checkpoint, sample: DataSample) -> dict[Side, list[str]]:
    """The texts of both sides without their prompts."""
    passages = [start.settings.text_of(passage) for passage in sample.passages]
    return {"query": sample.queries, "passage": passages}


def tokens_of(start: Checkpoint, sample: DataSample) -> dict[Side, Ints]:
    """(texts,) the tokens of each side's texts with prompts and special tokens, before any cut."""
    from ance_cli.models.tokens import Tokenizer

    tokenizer, texts = Tokenizer(start), texts_of(start, sample)
    return {side: tokenizer.lengths_of(texts[side], side) for side in texts}


def lengths_for(start: Checkpoint, sample: DataSample) -> dict[str, int]:
    """The lengths that the sample's texts need and the encoder takes, by their settings' names.

    Segments (MaxP) are as long as the encoder takes.
    """
    settings, tokens = start.settings, tokens_of(start, sample)
    passage = length_for("passage", tokens["passage"], settings.passage_length)
    if settings.segments > 1:
        passage = min(settings.passage_length, LONGEST)
    query = length_for("query", tokens["query"], settings.query_length)
    return {"query_length": query, "passage_length": passage}


def with_lengths(config: TrainConfig, start: Checkpoint, sample: DataSample) -> TrainConfig:
    """The recipe with lengths for a start that has none of its own (`Checkpoint.has_lengths`).

    `start` is the start checkpoint with the recipe's other settings.
    """
    if start.has_lengths or None not in (config.query_length, config.passage_length):
        return config
    chosen = lengths_for(start, sample)
    missing: dict[str, Any] = {
        name: each for name, each in chosen.items() if getattr(config, name) is None
    }
    return replace(config, **missing)


def shown_cut(cut: Mapping[Side, float]) -> dict[str, str]:
    """The share of each side's texts that are cut, for a summary."""
    return {_NAMES[side]: f"{share:.1%}" for side, share in cut.items()}


def warn_of_cut(
    cut: Mapping[Side, float],
    lengths: Mapping[Side, int],
    start: Checkpoint | None,
    reporter: Reporter,
) -> None:
    """Warn of each side of whose texts more than `MOST_CUT` are cut to its length."""
    for side, share in cut.items():
        if share <= MOST_CUT:
            continue
        change = flag_of(f"{side}_length")
        if start and lengths[side] >= start.tower(side).max_positions:
            change = "the encoder takes no more"
            change += "; --segmentation special" if side == "passage" else ""
        reporter.warn(
            f"{share:.0%} of a sample of the {_NAMES[side]} have more than {lengths[side]} tokens "
            f"and are cut ({change})"
        )


class Workload:
    """What the steps of a run come to, on the texts of a sample."""

    def __init__(self, start: Checkpoint, config: TrainConfig, sample: DataSample) -> None:
        """`start` is the checkpoint with the encoding settings of the run."""
        self.start, self.config, self.sample = start, config, sample

    @property
    def lengths(self) -> dict[Side, int]:
        """The tokens to which each side's texts are cut."""
        settings = self.start.settings
        return {"query": settings.query_length, "passage": settings.passage_length}

    @property
    def pairs_per_step(self) -> int:
        """Pairs in an optimizer step of all devices."""
        config = self.config
        return config.batch_size * config.devices * config.accumulation

    @property
    def passages_per_pair(self) -> int:
        """Passages that are encoded for a pair."""
        return 0 if self.config.freeze_passages else 1 + self.config.negatives_per_positive

    def epochs(self, steps: int) -> float:
        """How often `steps` visit each pair."""
        return steps * self.pairs_per_step / self.sample.num_pairs

    @cached_property
    def _tokenized(self) -> tuple[dict[Side, TokenRows], dict[Side, float]]:
        from ance_cli.models.tokens import Tokenizer

        tokenizer = Tokenizer(self.start)
        texts = texts_of(self.start, self.sample)
        rows = {side: tokenizer(texts[side], side) for side in texts}
        return rows, {side: tokenizer.num_cut[side] / tokenizer.num_texts[side] for side in texts}

    @property
    def rows(self) -> dict[Side, TokenRows]:
        """The token rows of the sample."""
        return self._tokenized[0]

    @property
    def cut(self) -> dict[Side, float]:
        """The share of each side's texts that are cut."""
        return self._tokenized[1]

    def warn(self, steps: int, reporter: Reporter) -> None:
        """Warn if `steps` visit the pairs too often, or if too many texts are cut."""
        epochs = self.epochs(steps)
        if epochs > MOST_EPOCHS:
            reporter.warn(
                f"this run visits each of its {self.sample.num_pairs:,} pairs {epochs:,.1f} times, "
                f"in {steps:,} steps of {self.pairs_per_step:,} pairs: more than {MOST_EPOCHS} "
                "times is seldom of use (--steps; in a loop --refresh-every and --segments)"
            )
        warn_of_cut(self.cut, self.lengths, self.start, reporter)

    @cached_property
    def step_flops(self) -> int:
        """FLOPs of an optimizer step. Micro-batches drawn from the sample are as wide as their
        longest row, because they are padded."""
        pairs, padded = self.config.batch_size, []
        rng = keyed_generator(self.config.seed, "workload")
        per_pair: Mapping[Side, int] = {"query": 1, "passage": self.passages_per_pair}
        for side, count in per_pair.items():
            rows = self.rows[side]
            number = round(pairs * count * rows.num_rows / len(rows.row_counts))
            drawn = rng.choice(rows.lengths, (_DRAWN_BATCHES, number))
            widest = -(-drawn.max(1, initial=0) // 8) * 8  # as `TokenRows.padded` has it
            padded.append((number * widest.mean(), number * (widest**2).mean()))
        tokens, squares = np.sum(padded, 0)
        micro_batches = self.config.devices * self.config.accumulation
        frozen = self.config.freeze_layers
        return micro_batches * self.products.training_flops(int(tokens), int(squares), frozen)

    @cached_property
    def encode_flops(self) -> int:
        """FLOPs of encoding the corpus once, in batches of equal lengths."""
        lengths = self.rows["passage"].lengths
        of_sample = self.products.forward_flops(int(lengths.sum()), int((lengths**2).sum()))
        return of_sample * self.sample.num_docs // len(self.sample.passages)

    @cached_property
    def products(self) -> Products:
        """The matrix products of the encoder, counted without loading it."""
        from ance_cli.models.flops import products_of_tower

        return products_of_tower(self.start.tower("query"))

    def facts(self, steps: int) -> dict[str, Any]:
        """What `steps` come to, for a summary."""
        return {
            "steps": steps,
            "epochs": round(self.epochs(steps), 2),
            "pairs_per_step": self.pairs_per_step,
            **{f"{side}_length": length for side, length in self.lengths.items()},
            "cut": shown_cut(self.cut),
        }
