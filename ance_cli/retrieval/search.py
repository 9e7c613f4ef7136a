"""`ance search`: queries to ranked documents, by a checkpoint or by BM25."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from ance_cli.call import Call, SkippedLines
from ance_cli.config import ComputeConfig, SearchConfig, shaped_by
from ance_cli.formats import lease
from ance_cli.formats.dataset import Passage, read_corpus
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.hashing import hash_file, hash_lines
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.formats.trec import write_hits
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource

Hits = list[tuple[str, float]]
"""(doc_id, score), best first."""


def search(
    queries: dict[str, str],
    output: Path,
    searcher: Searcher,
    config: SearchConfig = SearchConfig(),
    queries_from: Sequence[Path] = (),
    call: Call = Call(),
) -> Summary:
    """Write a TREC run of the top `depth` documents of each query (`-` is stdout).

    `queries_from` names the files that the queries were read from: the run may not replace them.
    """
    searcher.check()
    plan = _plan(queries, output, searcher, config, queries_from)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with searcher.reading(), lease.of_output(output):
        started = time.monotonic()
        found = searcher.hits(queries, config, call)
        plan.shaped_by |= searcher.shaping
        stats: dict[str, Any] = {"queries": len(queries), "depth": config.depth}
        with plan.text_file(stats) as handle:
            for query_id, listed in found.items():
                write_hits(handle, query_id, listed, config.tag)
            stats["seconds"] = round(time.monotonic() - started, 2)
        return made(plan, stats)


def _plan(
    queries: dict[str, str],
    output: Path,
    searcher: Searcher,
    config: SearchConfig,
    queries_from: Sequence[Path],
) -> Plan:
    settings = {
        name: value
        for name, value in shaped_by(config).items()
        if name not in searcher.unused_settings
    }
    inputs = {"queries": hash_lines(f"{name}\t{text}" for name, text in queries.items())}
    return Plan(
        "run", output, settings | searcher.shaping, inputs | searcher.inputs,
        reads=[*queries_from, *searcher.reads],
    )  # fmt: skip


# ---------------------------------------------------------------- ways to search


class Searcher(Protocol):
    """One way to rank documents for queries."""

    @property
    def unused_settings(self) -> Sequence[str]:
        """Settings of `SearchConfig` that do not apply to this way."""

    @property
    def inputs(self) -> dict[str, str]:
        """What the hits depend on besides the queries and the settings: name -> fingerprint."""

    @property
    def shaping(self) -> dict[str, Any]:
        """Further settings that shape the run; after a search `auto` is resolved."""

    @property
    def reads(self) -> Sequence[Path | None]:
        """Files and folders that the search reads."""

    def check(self) -> None:
        """Raises `Mismatch` if the parts of the searcher do not belong together."""

    def reading(self) -> AbstractContextManager[object]:
        """Holds the lease of what is read while the block runs."""

    def hits(self, queries: dict[str, str], config: SearchConfig, call: Call) -> dict[str, Hits]:
        """query_id -> the top `config.depth` documents."""


class DenseSearcher:
    """Passage vectors, searched with the query encoder of the checkpoint that made them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: VectorSource,
        corpus: Path | None = None,
        compute: ComputeConfig = ComputeConfig(),
        rescore: VectorSource | None = None,
    ) -> None:
        """`corpus` names the corpus whose vectors are expected; None: of any corpus. The scores
        come from the embeddings `rescore`, if given."""
        self._checkpoint, self._source, self._corpus = checkpoint, source, corpus
        self._compute, self._rescore = compute, rescore
        self._dtype: str = compute.dtype

    @property
    def unused_settings(self) -> tuple[str, ...]:
        return ("k1", "b", *([] if self._rescore else ["rescore_depth"]))

    @property
    def inputs(self) -> dict[str, str]:
        query_tower = self._checkpoint.tower_hash("query")
        found = {"vectors": self._source.fingerprint, "query_tower": query_tower}
        return found | ({"rescore": self._rescore.fingerprint} if self._rescore else {})

    @property
    def shaping(self) -> dict[str, Any]:
        return {"dtype": self._dtype}

    @property
    def reads(self) -> Sequence[Path | None]:
        return self._corpus, self._checkpoint.path, *(source.path for source in self._sources)

    @property
    def _sources(self) -> list[VectorSource]:
        return [self._source, *([self._rescore] if self._rescore else [])]

    def check(self) -> None:
        """Raises `Mismatch` if another passage encoder made the vectors, or from another corpus."""
        self._source.check(self._checkpoint, hash_file(self._corpus) if self._corpus else None)
        if self._rescore:
            self._rescore.check(self._checkpoint, None)
            self._rescore.check_same_corpus(self._source)

    @contextmanager
    def reading(self) -> Iterator[None]:
        with ExitStack() as leases:
            for source in self._sources:
                leases.enter_context(lease.reading(source.path))
            yield

    def hits(self, queries: dict[str, str], config: SearchConfig, call: Call) -> dict[str, Hits]:
        retriever = DenseRetriever(self._checkpoint, self._source, self._compute, config.probes)
        self._dtype = retriever.dtype
        xq = retriever.encode_queries(list(queries.values()), call.reporter)
        scores, docs = retriever.search(xq, config.searched_depth, call.reporter)
        if self._rescore:
            from ance_cli.retrieval.exact import rescored

            embeddings = Embeddings(self._rescore.path)
            scores, docs = rescored(xq, docs, embeddings, config.depth)
        return hits_of(queries, docs, scores, retriever.doc_ids)


class Bm25Searcher:
    """A corpus, searched by BM25 (`config.engine`)."""

    unused_settings = ("probes", "rescore_depth")

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus

    @property
    def inputs(self) -> dict[str, str]:
        return {"corpus": hash_file(self.corpus)}

    @property
    def shaping(self) -> dict[str, Any]:
        return {}

    @property
    def reads(self) -> Sequence[Path | None]:
        return (self.corpus,)

    def check(self) -> None:
        pass

    def reading(self) -> AbstractContextManager[object]:
        return nullcontext()

    def hits(self, queries: dict[str, str], config: SearchConfig, call: Call) -> dict[str, Hits]:
        from ance_cli.retrieval.bm25 import open_bm25

        bm25 = open_bm25(config.engine, self.corpus, config.k1, config.b, call)
        doc_ids = [passage.doc_id for passage in read_corpus(self.corpus, call.skipped)]
        with call.reporter.task("BM25", len(queries), "query") as bar:
            docs, scores = bm25.search(list(queries.values()), config.depth, bar.advance)
        return hits_of(queries, docs, scores, doc_ids)


def hits_of(
    queries: dict[str, str],
    docs: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    doc_ids: Sequence[str],
) -> dict[str, Hits]:
    """query_id -> hits, from (queries, depth) document positions (-1 = none) and scores."""
    return {
        query_id: [
            (doc_ids[place], float(score))
            for place, score in zip(docs[row].tolist(), scores[row], strict=True)
            if place >= 0
        ]
        for row, query_id in enumerate(queries)
    }


def passages_of(
    corpus: Path, doc_ids: set[str], skipped: SkippedLines | None = None
) -> dict[str, Passage]:
    """The passages with these ids."""
    passages = read_corpus(corpus, skipped)
    return {passage.doc_id: passage for passage in passages if passage.doc_id in doc_ids}
