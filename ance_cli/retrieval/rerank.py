"""`ance rerank`: the top of a run, scored anew by a dual encoder or by a cross-encoder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.config import ComputeConfig, RerankConfig
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset, Passage, read_corpus, read_queries
from ance_cli.formats.hashing import hash_file, hash_lines
from ance_cli.formats.journal import Journal
from ance_cli.formats.manifest import Plan
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
    checkpoint: Checkpoint | None = None,
    source: VectorSource | None = None,
    cross_encoder: Path | None = None,
    config: RerankConfig = RerankConfig(),
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> Summary:
    """Write a run of the `depth` best documents of each of `run`'s queries in a new order.

    A score is the inner product of `checkpoint`'s vectors, MaxP the maximum over the rows: of those
    in `source`, embeddings, or else of the passages in question, encoded for this; or it is
    `cross_encoder`'s logit. Raises `BadInput` where a query or a document is not in the dataset.
    """
    ranked = {
        query_id: [doc_id for doc_id, _ in in_trec_order(hits)[: config.depth]]
        for query_id, hits in read_run(run, call.skipped).items()
    }
    texts = read_queries(dataset.need("queries"), call.skipped)
    if unknown := next((query_id for query_id in ranked if query_id not in texts), None):
        raise BadInput(
            f"{run}: query {unknown!r} is not among the queries",
            hint="the run should come from the dataset that --data names",
        )
    queries = {query_id: texts[query_id] for query_id in ranked}
    inputs = {
        "run": hash_lines(" ".join([query_id, *doc_ids]) for query_id, doc_ids in ranked.items()),
        "queries": hash_lines(f"{query_id}\t{text}" for query_id, text in queries.items()),
        "corpus": hash_file(dataset.corpus),
    }
    if cross_encoder is not None:
        from ance_cli.models.cross_encoder import cross_encoder_fingerprint

        inputs["cross_encoder"] = cross_encoder_fingerprint(cross_encoder, config.pair_length)
    else:
        assert checkpoint is not None
        inputs["query_tower"] = checkpoint.tower_hash("query")
        if source is not None:
            source.check(checkpoint, inputs["corpus"])
            inputs["vectors"] = source.fingerprint
        else:
            inputs["passage_tower"] = checkpoint.tower_hash("passage")
    shaped_by: dict[str, Any] = {
        "engine": "rerank", "depth": config.depth, "tag": config.tag, "dtype": compute.dtype
    }  # fmt: skip
    reads = [run, *dataset.files, source.path if source else None]
    plan = Plan("run", output, shaped_by, inputs, reads=reads)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    def write(journal: Journal) -> Summary:
        started = time.monotonic()
        if source is not None and checkpoint is not None:
            scores, dtype = _by_vectors(
                run, ranked, queries, checkpoint, source, compute, call.reporter
            )
            plan.shaped_by["dtype"] = dtype
        else:
            scorer: _Scorer
            if cross_encoder is not None:
                scorer = _CrossScorer(cross_encoder, config.pair_length, queries, compute, journal)
            else:
                assert checkpoint is not None
                scorer = _DualScorer(checkpoint, queries, compute, call.reporter)
            plan.shaped_by["dtype"] = scorer.dtype  # now: the journal compares it
            scores = _by_texts(run, ranked, scorer, dataset.corpus, call)
        stats: dict[str, Any] = {"queries": len(ranked), "pairs": len(scores)}
        values = iter(scores.tolist())
        with plan.text_file(stats) as handle:
            for query_id, doc_ids in ranked.items():
                hits = [(doc_id, next(values)) for doc_id in doc_ids]
                write_hits(handle, query_id, hits, config.tag)
            stats["seconds"] = round(time.monotonic() - started + journal.seconds_before, 2)
        return made(plan, stats)

    reading = lease.reading(source.path) if source is not None else nullcontext()
    with reading, lease.of_output(output), plan.journal(call.force, call.reporter.say) as journal:
        return write(journal)


# ---------------------------------------------------------------- from embeddings


def _by_vectors(
    run: Path,
    ranked: Mapping[str, Sequence[str]],
    queries: Mapping[str, str],
    checkpoint: Checkpoint,
    source: VectorSource,
    compute: ComputeConfig,
    reporter: Reporter,
) -> tuple[Floats, str]:
    """(pairs,) exact scores in the order of `ranked`, and the number format of the encoder."""
    from ance_cli.formats.embeddings import Embeddings
    from ance_cli.models.texts import TextEncoder
    from ance_cli.retrieval.exact import pair_scores

    embeddings = Embeddings(source.path)
    position = {doc_id: place for place, doc_id in enumerate(embeddings.ids)}
    doc_of = np.array([position.get(doc_id, -1) for doc_id in chain(*ranked.values())], np.int64)
    if (doc_of < 0).any():
        raise _unknown(run, next(d for d in chain(*ranked.values()) if d not in position))
    encoder = TextEncoder(checkpoint, "query", compute)
    with reporter.task("encoding queries", len(queries), "query") as bar:
        xq, _ = encoder(list(queries.values()), bar.advance)
    return pair_scores(xq, _query_of(ranked), doc_of, embeddings), encoder.dtype


def _query_of(ranked: Mapping[str, Sequence[str]]) -> Ints:
    """(pairs,) the row of each pair's query."""
    return np.repeat(np.arange(len(ranked)), [len(doc_ids) for doc_ids in ranked.values()])


def _unknown(run: Path, doc_id: str) -> BadInput:
    return BadInput(
        f"{run}: document {doc_id!r} is not in the corpus",
        hint="the run should come from the corpus that --data names",
    )


# ---------------------------------------------------------------- from texts


class _Scorer(Protocol):
    """Scores of queries, by row, with some passages, by place: (pairs,) float32. The bar hears of
    the pairs as they are done."""

    dtype: str

    def __call__(
        self, passages: Sequence[Passage], query_of: Ints, passage_of: Ints, bar: Bar
    ) -> Floats: ...


class _Encoded(NamedTuple):
    vectors: Floats
    doc_offsets: Ints


class _DualScorer:
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
        with reporter.task("encoding queries", len(queries), "query") as bar:
            self._xq, _ = encoder(list(queries.values()), bar.advance)
        self._separator = checkpoint.settings.separator
        self._encoder = TextEncoder(checkpoint, "passage", config)

    def __call__(
        self, passages: Sequence[Passage], query_of: Ints, passage_of: Ints, bar: Bar
    ) -> Floats:
        from ance_cli.retrieval.exact import pair_scores

        vectors, counts = self._encoder([p.joined(self._separator) for p in passages])
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        bar.advance(len(query_of))
        return pair_scores(self._xq, query_of, passage_of, _Encoded(vectors, offsets))


class _CrossScorer:
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

    def __call__(
        self, passages: Sequence[Passage], query_of: Ints, passage_of: Ints, bar: Bar
    ) -> Floats:
        texts = [passage.joined(" ") for passage in passages]
        pairs = zip(query_of.tolist(), passage_of.tolist(), strict=True)
        return self._encoder.scores(
            [(self._queries[query], texts[place]) for query, place in pairs],
            bar.advance,
            self._journal,
        )


def _by_texts(
    run: Path,
    ranked: Mapping[str, Sequence[str]],
    scorer: _Scorer,
    corpus: Path,
    call: Call,
) -> Floats:
    """(pairs,) scores in the order of `ranked`; the corpus is read once, block by block."""
    pairs_of: dict[str, list[int]] = {}
    for pair, doc_id in enumerate(chain(*ranked.values())):
        pairs_of.setdefault(doc_id, []).append(pair)
    query_of = _query_of(ranked)
    scores = np.full(len(query_of), np.nan, np.float32)
    with call.reporter.task("scoring", len(scores), "pair") as bar:
        for passages in _blocks(read_corpus(corpus, call.skipped), pairs_of):
            listed = [pairs_of.pop(passage.doc_id) for passage in passages]
            pairs = np.array(list(chain(*listed)), np.int64)
            passage_of = np.repeat(np.arange(len(passages)), [len(own) for own in listed])
            scores[pairs] = scorer(passages, query_of[pairs], passage_of, bar)
    if pairs_of:
        raise _unknown(run, next(iter(pairs_of)))
    return scores


def _blocks(
    passages: Iterator[Passage], wanted: Mapping[str, list[int]]
) -> Iterator[list[Passage]]:
    """The passages that are wanted, `_BLOCK` at a time."""
    block: list[Passage] = []
    for passage in passages:
        if passage.doc_id in wanted:
            block.append(passage)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block
