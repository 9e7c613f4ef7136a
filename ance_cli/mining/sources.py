"""The ranked sources of `ance mine`: the model's ranking, BM25, an earlier model, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates, read_candidates
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Clock
from ance_cli.mining.audit import BM25_TOP
from ance_cli.mining.bm25_rankings import cached_bm25
from ance_cli.mining.given import given_lists
from ance_cli.mining.mining_data import MiningData
from ance_cli.mining.mining_job import MiningJob
from ance_cli.mining.mix import ANN, BM25, GIVEN, LOOKAHEAD, PREVIOUS
from ance_cli.mining.pool import RankedLists
from ance_cli.mining.query_model import QueryModel
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    import torch


class Rankings:
    """The rankings that the sources of one job read, each made when first needed."""

    def __init__(
        self, job: MiningJob, plan: Plan, data: MiningData, model: QueryModel, clock: Clock
    ) -> None:
        self.job, self.data, self.model = job, data, model
        self._plan, self._clock = plan, clock

    @cached_property
    def ann(self) -> Candidates:
        """The model's own ranking: searched, or read from the candidates folder."""
        folder, call = self.job.files.candidates_folder, self.job.call
        if folder is None:
            return self.model.rank()
        if manifest := self._plan.published(call.force):
            self.model.dtype = manifest["shaped_by"]["dtype"]
            call.reporter.say(f"drawing from the candidates in {folder}")
            return self.earlier(folder)
        candidates = self.model.rank()
        self._plan.shaped_by["dtype"] = self.model.dtype
        with lease.hold(lease.lease_name(folder), str(folder)):
            partial = self._plan.open_partial(force=True)  # a search cannot be continued
            with self._clock("keep"):
                content = candidates.write(partial)
                self._plan.publish_folder(content, {"dtype": self.model.dtype})
        return candidates

    @cached_property
    def bm25(self) -> Candidates:
        """BM25's ranking, at least as deep as the audit needs."""
        job = self.job
        with self._clock("bm25"):
            return cached_bm25(job.dataset, self.data, job.config, job.files.bm25, job.call)

    def earlier(self, folder: Path) -> Candidates:
        """The candidates in a folder, down to the job's depth."""
        return _cut(read_candidates(folder, self.data.num_docs), self.job.config.depth)

    def bm25_top(self) -> Callable[[str], set[str]]:
        """query_id -> the documents that BM25 ranks highest, for the audit."""
        lists = RankedLists.of(_cut(self.bm25, BM25_TOP), scored=False)
        doc_ids = self.data.duplicates.doc_ids
        return lambda query_id: {doc_ids[doc] for doc in lists.listed(query_id)[0]}


def _cut(candidates: Candidates, depth: int) -> Candidates:
    """The best-ranked `depth` documents of each list."""
    return Candidates(
        candidates.query_ids,
        candidates.docs[:, :depth],
        candidates.scores[:, :depth],
        candidates.positive_scores,
    )


# ---------------------------------------------------------------- sources


def _by_model(rankings: Rankings) -> RankedLists:
    return RankedLists.of(rankings.ann)


def _by_bm25(rankings: Rankings) -> RankedLists:
    return RankedLists.of(_cut(rankings.bm25, rankings.job.config.depth), scored=False)


def _by_earlier_model(rankings: Rankings) -> RankedLists:
    assert rankings.job.files.previous is not None
    return RankedLists.of(rankings.earlier(rankings.job.files.previous), scored=False)


def _by_neighbours(rankings: Rankings) -> RankedLists:
    job, model = rankings.job, rankings.model
    return neighbours(
        rankings.data.positives,
        model.embeddings,
        job.config.depth,
        model.retriever.device,
        job.call.reporter,
    )


def _by_the_data(rankings: Rankings) -> RankedLists:
    job = rankings.job
    return given_lists(job.dataset, rankings.data, job.call.skipped)


SOURCES: Mapping[str, Callable[[Rankings], RankedLists]] = {
    ANN: _by_model,
    BM25: _by_bm25,
    PREVIOUS: _by_earlier_model,
    LOOKAHEAD: _by_neighbours,
    GIVEN: _by_the_data,
}
"""Source -> its ranked lists. `random` is drawn from the corpus pair by pair, without a list."""


def neighbours(
    positives: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
    depth: int,
    device: torch.device,
    reporter: Reporter,
) -> RankedLists:
    """For each positive, the passages nearest to it (ANCE-Tele's lookahead negatives).

    MaxP: the similarity of two documents is the maximum over their rows.
    """
    from ance_cli.retrieval.exact import exact_top_docs, in_order, pool_to_documents

    depth = min(depth, embeddings.num_docs)
    position = {doc_id: place for place, doc_id in enumerate(embeddings.ids)}
    doc_ids = sorted({name for names in positives.values() for name in names}, key=position.get)  # type: ignore[arg-type]
    places = np.array([position[doc_id] for doc_id in doc_ids])
    first, last = embeddings.doc_offsets[places], embeddings.doc_offsets[places + 1]
    rows = np.concatenate([np.arange(start, stop) for start, stop in zip(first, last, strict=True)])
    xq = embeddings.rows(rows)
    with reporter.task("searching neighbours", embeddings.num_rows, "row") as bar:
        D, found = exact_top_docs(xq, embeddings, depth, [device], bar.advance)
    row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    if len(rows) == len(doc_ids):
        return RankedLists(found, None, row_of, by_positive=True)
    itself = np.arange(embeddings.num_docs, dtype=np.int32)
    docs = np.empty((len(doc_ids), depth), np.int32)
    ends = np.cumsum(last - first)
    for nth, (start, end) in enumerate(zip(ends - (last - first), ends, strict=True)):
        best = in_order(D[start:end].reshape(1, -1), found[start:end].reshape(1, -1))
        docs[nth] = pool_to_documents(*best, itself, depth)[1][0]
    return RankedLists(docs, None, row_of, by_positive=True)
