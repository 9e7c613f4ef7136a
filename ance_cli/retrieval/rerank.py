"""`ance rerank`: the top of a run with new scores, by a dual encoder or by a cross-encoder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.config import ComputeConfig, RerankConfig, shaped_by
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset, Passage, read_corpus, read_queries
from ance_cli.formats.hashing import hash_file, hash_lines
from ance_cli.formats.journal import Journal
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.formats.trec import in_trec_order, read_run, write_hits
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Bar, Reporter
from ance_cli.retrieval.dense import VectorSource

_BLOCK = 4096
"""Passages that are read and scored at a time, so that memory stays bounded."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def rerank(
    run: Path,
    dataset: Dataset,
    output: Path,
    scoring: Scoring,
    config: RerankConfig = RerankConfig(),
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> Summary:
    """Write a run of the `depth` best documents of each of `run`'s queries in a new order.

    Raises `BadInput` if a query or a document is not in the dataset.
    """
    pairs = _read_pairs(run, dataset, config.depth, call)
    plan = _plan(pairs, dataset, output, scoring, config, compute)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    reading = lease.reading(scoring.vectors) if scoring.vectors is not None else nullcontext()
    with reading, lease.of_output(output), plan.journal(call.force, call.reporter.say) as journal:
        started = time.monotonic()
        scorer = scoring.open(pairs, config, compute, journal, call.reporter)
        plan.shaped_by["dtype"] = scorer.dtype  # before the journal's first use: it compares this
        scores = scorer(pairs, dataset.corpus, call)
        return _write(plan, pairs, scores, config, started - journal.seconds_before)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query and a document of a run, query by query."""

    run: Path
    ranked: Mapping[str, Sequence[str]]
    """query_id -> documents, best first."""
    queries: Mapping[str, str]
    """query_id -> text."""

    @property
    def doc_ids(self) -> Iterator[str]:
        """The document of each pair."""
        return chain(*self.ranked.values())

    @cached_property
    def query_of(self) -> Ints:
        """(pairs,) the position of each pair's query."""
        counts = [len(doc_ids) for doc_ids in self.ranked.values()]
        return np.repeat(np.arange(len(counts)), counts)

    def unknown(self, doc_id: str) -> BadInput:
        """The error of a document that is not in the corpus."""
        return BadInput(
            f"{self.run}: document {doc_id!r} is not in the corpus",
            hint="use a run over the corpus that --data names",
        )


def _read_pairs(run: Path, dataset: Dataset, depth: int, call: Call) -> _Pairs:
    ranked = {
        query_id: [doc_id for doc_id, _ in in_trec_order(hits)[:depth]]
        for query_id, hits in read_run(run, call.skipped).items()
    }
    texts = read_queries(dataset.need("queries"), call.skipped)
    if unknown := next((query_id for query_id in ranked if query_id not in texts), None):
        raise BadInput(
            f"{run}: query {unknown!r} is not among the queries",
            hint="use a run over the dataset that --data names",
        )
    return _Pairs(run, ranked, {query_id: texts[query_id] for query_id in ranked})


def _plan(
    pairs: _Pairs,
    dataset: Dataset,
    output: Path,
    scoring: Scoring,
    config: RerankConfig,
    compute: ComputeConfig,
) -> Plan:
    settings = {"engine": "rerank", **shaped_by(config), "dtype": compute.dtype}
    corpus = hash_file(dataset.corpus)
    inputs = {
        "run": hash_lines(" ".join([name, *doc_ids]) for name, doc_ids in pairs.ranked.items()),
        "queries": hash_lines(f"{name}\t{text}" for name, text in pairs.queries.items()),
        "corpus": corpus,
        **scoring.inputs(config, corpus),
    }
    reads = [pairs.run, *dataset.files, scoring.vectors]
    return Plan("run", output, settings, inputs, reads=reads)


def _write(
    plan: Plan, pairs: _Pairs, scores: Floats, config: RerankConfig, started: float
) -> Summary:
    stats: dict[str, Any] = {"queries": len(pairs.ranked), "pairs": len(scores)}
    values = iter(scores.tolist())
    with plan.text_file(stats) as handle:
        for query_id, doc_ids in pairs.ranked.items():
            hits = [(doc_id, next(values)) for doc_id in doc_ids]
            write_hits(handle, query_id, hits, config.tag)
        stats["seconds"] = round(time.monotonic() - started, 2)
    return made(plan, stats)


# ---------------------------------------------------------------- ways to score


class Scoring(Protocol):
    """One way to score pairs, before a model is loaded."""

    @property
    def vectors(self) -> Path | None:
        """The embeddings that are read, if any."""

    def inputs(self, config: RerankConfig, corpus: str) -> dict[str, str]:
        """What the scores depend on besides the pairs; `corpus` is the corpus's hash."""

    def open(
        self,
        pairs: _Pairs,
        config: RerankConfig,
        compute: ComputeConfig,
        journal: Journal,
        reporter: Reporter,
    ) -> _Scorer:
        """Load the model; `journal` keeps finished scores of an interrupted call."""


class _Scorer(Protocol):
    dtype: str
    """Number format of the model, with `auto` resolved."""

    def __call__(self, pairs: _Pairs, corpus: Path, call: Call) -> Floats:
        """(pairs,) scores."""


@dataclass(frozen=True)
class DualScoring:
    """Inner products of a checkpoint's vectors; for MaxP the maximum over a document's rows.

    The passage vectors are read from `source`, embeddings; None: the passages of the run are
    encoded.
    """

    checkpoint: Checkpoint
    source: VectorSource | None = None

    @property
    def vectors(self) -> Path | None:
        return self.source.path if self.source else None

    def inputs(self, config: RerankConfig, corpus: str) -> dict[str, str]:
        found = {"query_tower": self.checkpoint.tower_hash("query")}
        if self.source is None:
            return {**found, "passage_tower": self.checkpoint.tower_hash("passage")}
        self.source.check(self.checkpoint, corpus)
        return {**found, "vectors": self.source.fingerprint}

    def open(
        self,
        pairs: _Pairs,
        config: RerankConfig,
        compute: ComputeConfig,
        journal: Journal,
        reporter: Reporter,
    ) -> _Scorer:
        if self.source is None:
            return _DualScorer(self.checkpoint, pairs.queries, compute, reporter)
        return _VectorScorer(self.checkpoint, self.source.path, compute)


@dataclass(frozen=True)
class CrossScoring:
    """Logits of the cross-encoder in a folder."""

    folder: Path
    vectors = None

    def inputs(self, config: RerankConfig, corpus: str) -> dict[str, str]:
        from ance_cli.models.cross_encoder import cross_encoder_fingerprint

        return {"cross_encoder": cross_encoder_fingerprint(self.folder, config.pair_length)}

    def open(
        self,
        pairs: _Pairs,
        config: RerankConfig,
        compute: ComputeConfig,
        journal: Journal,
        reporter: Reporter,
    ) -> _Scorer:
        return _CrossScorer(self.folder, config.pair_length, pairs.queries, compute, journal)


# ---------------------------------------------------------------- from embeddings


class _VectorScorer:
    """Scores from published embeddings."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, compute: ComputeConfig) -> None:
        from ance_cli.formats.embeddings import Embeddings
        from ance_cli.models.texts import TextEncoder

        self._embeddings = Embeddings(folder)
        self._encoder = TextEncoder(checkpoint, "query", compute)
        self.dtype = self._encoder.dtype

    def __call__(self, pairs: _Pairs, corpus: Path, call: Call) -> Floats:
        from ance_cli.retrieval.exact import pair_scores

        position = {doc_id: place for place, doc_id in enumerate(self._embeddings.ids)}
        doc_of = np.array([position.get(doc_id, -1) for doc_id in pairs.doc_ids], np.int64)
        if (doc_of < 0).any():
            raise pairs.unknown(next(name for name in pairs.doc_ids if name not in position))
        xq = self._encoder.queries(list(pairs.queries.values()), call.reporter)
        return pair_scores(xq, pairs.query_of, doc_of, self._embeddings)


# ---------------------------------------------------------------- from texts


class _TextScorer(ABC):
    """Scores from the passages' texts; the corpus is read once, block by block."""

    dtype: str

    @abstractmethod
    def score(
        self, passages: Sequence[Passage], query_of: Ints, passage_of: Ints, bar: Bar
    ) -> Floats:
        """(pairs,) scores of queries with passages, both by position; advances the bar by the pairs
        that are done."""

    @abstractmethod
    def say_cut(self, reporter: Reporter) -> None:
        """Tell how many of the texts that were scored were cut, if any were."""

    def __call__(self, pairs: _Pairs, corpus: Path, call: Call) -> Floats:
        pairs_of: dict[str, list[int]] = {}
        for pair, doc_id in enumerate(pairs.doc_ids):
            pairs_of.setdefault(doc_id, []).append(pair)
        scores = np.full(len(pairs.query_of), np.nan, np.float32)
        with call.reporter.task("scoring", len(scores), "pair") as bar:
            for passages in _blocks(read_corpus(corpus, call.skipped), pairs_of):
                listed = [pairs_of.pop(passage.doc_id) for passage in passages]
                chosen = np.array(list(chain(*listed)), np.int64)
                passage_of = np.repeat(np.arange(len(passages)), [len(own) for own in listed])
                scores[chosen] = self.score(passages, pairs.query_of[chosen], passage_of, bar)
        if pairs_of:
            raise pairs.unknown(next(iter(pairs_of)))
        self.say_cut(call.reporter)
        return scores


def _blocks(
    passages: Iterator[Passage], wanted: Mapping[str, list[int]]
) -> Iterator[list[Passage]]:
    """The wanted passages, `_BLOCK` at a time."""
    block: list[Passage] = []
    for passage in passages:
        if passage.doc_id in wanted:
            block.append(passage)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


class _Encoded(NamedTuple):
    """Vectors that were never stored, as `exact.DocumentVectors`."""

    vectors: Floats
    doc_offsets: Ints

    def rows(self, positions: npt.NDArray[np.integer[Any]]) -> Floats:
        """The vectors of some rows."""
        found: Floats = self.vectors[positions]
        return found


class _DualScorer(_TextScorer):
    def __init__(
        self,
        checkpoint: Checkpoint,
        queries: Mapping[str, str],
        config: ComputeConfig,
        reporter: Reporter,
    ) -> None:
        from ance_cli.models.texts import TextEncoder

        encoder = TextEncoder(checkpoint, "query", config)
        self.dtype = encoder.dtype
        self._xq = encoder.queries(list(queries.values()), reporter)
        self._text_of = checkpoint.settings.text_of
        self._encoder = TextEncoder(checkpoint, "passage", config)

    def score(
        self, passages: Sequence[Passage], query_of: Ints, passage_of: Ints, bar: Bar
    ) -> Floats:
        from ance_cli.retrieval.exact import pair_scores

        vectors, counts = self._encoder([self._text_of(passage) for passage in passages])
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        bar.advance(len(query_of))
        return pair_scores(self._xq, query_of, passage_of, _Encoded(vectors, offsets))

    def say_cut(self, reporter: Reporter) -> None:
        self._encoder.say_cut(reporter)


class _CrossScorer(_TextScorer):
    def __init__(
        self,
        folder: Path,
        length: int,
        queries: Mapping[str, str],
        config: ComputeConfig,
        journal: Journal,
    ) -> None:
        from ance_cli.models.cross_encoder import CrossEncoder

        self._encoder = CrossEncoder(folder, config.gpus, config.dtype, length, config.batch_tokens)
        self.dtype = self._encoder.dtype
        self._queries = list(queries.values())
        self._journal = journal

    def score(
        self, passages: Sequence[Passage], query_of: Ints, passage_of: Ints, bar: Bar
    ) -> Floats:
        texts = [passage.joined(" ") for passage in passages]
        places = zip(query_of.tolist(), passage_of.tolist(), strict=True)
        return self._encoder.scores(
            [(self._queries[query], texts[passage]) for query, passage in places],
            bar.advance,
            self._journal,
        )

    def say_cut(self, reporter: Reporter) -> None:
        self._encoder.say_cut(reporter)
