"""The model of a mining job: its query encoder, and scores of documents for the queries."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from ance_cli.config.sets import Dtype
from ance_cli.formats.candidates import Candidates
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.summary import Clock
from ance_cli.mining.mining_data import MiningData
from ance_cli.mining.mining_job import MiningJob
from ance_cli.mining.rescoring import ExactScores
from ance_cli.retrieval.dense import DenseRetriever

if TYPE_CHECKING:
    from ance_cli.models.ray_cluster import Cluster
    from ance_cli.retrieval.exact import Found


class QueryModel:
    """The query encoder and the vectors; loaded, and the queries encoded, when first needed."""

    def __init__(
        self, job: MiningJob, data: MiningData, cluster: Cluster | None, clock: Clock
    ) -> None:
        self.data = data
        self.dtype: str = job.compute.dtype
        """As the caller asked; the model's own once it is loaded."""
        self._job, self._cluster, self._clock = job, cluster, clock

    @cached_property
    def retriever(self) -> DenseRetriever:
        job = self._job
        compute = replace(job.compute.local, dtype=cast(Dtype, self.dtype))
        retriever = DenseRetriever(job.checkpoint, job.vectors, compute, job.config.probes)
        self.dtype = retriever.dtype
        return retriever

    @property
    def embeddings(self) -> Embeddings:
        """The vectors of the corpus, if the job is exact."""
        assert self.retriever.embeddings is not None
        return self.retriever.embeddings

    @cached_property
    def xq(self) -> npt.NDArray[np.float32]:
        """(queries, d) float32."""
        texts = list(self.data.queries.values())
        retriever = self.retriever
        with self._clock("queries"):
            return retriever.encode_queries(texts, self._job.call.reporter)

    def rank(self) -> Candidates:
        """The documents that the model ranks highest for each query, and the positives' scores."""
        scores, docs = self._search(self._job.config.depth)
        positives = self.positive_scores if self._job.is_exact else {}
        return Candidates(list(self.data.queries), docs, scores, positives)

    def _search(self, depth: int) -> Found:
        xq, reporter = self.xq, self._job.call.reporter
        with self._clock("search"):
            if self._cluster and self._job.is_exact:
                from ance_cli.retrieval.ray_search import search_in_cluster

                return search_in_cluster(self._cluster, xq, self.embeddings, depth, reporter)
            return self.retriever.search(xq, depth, reporter)

    @cached_property
    def positive_scores(self) -> dict[str, dict[str, float]]:
        """query_id -> doc_id -> score of each positive; needs embeddings."""
        from ance_cli.retrieval.exact import positive_scores

        xq = self.xq
        with self._clock("positives"):
            return positive_scores(
                xq, list(self.data.queries), self.data.positives, self.embeddings
            )

    def exact_scores(self) -> ExactScores:
        """The model's score of any document; needs embeddings."""
        return ExactScores(self.xq, list(self.data.queries), self.embeddings)
