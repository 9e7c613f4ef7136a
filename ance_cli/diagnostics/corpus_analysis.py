"""Analyses each sampled pair over the whole corpus, from the stored vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ance_cli.diagnostics.corpus_scores import (
    BYTES_A_DOCUMENT,
    CorpusScores,
    compute,
    weighted_sums,
)
from ance_cli.diagnostics.pair import ANCE, BM25, Enumeration, ExactMoments, Pair
from ance_cli.diagnostics.pair_analysis import PairAnalysis, analyze
from ance_cli.diagnostics.pair_set import PairSet, banned_docs, negatives_of
from ance_cli.formats.embeddings import Embeddings
from ance_cli.mining.bm25_rankings import search_bm25
from ance_cli.mining.pool import RankedLists

_CORPUS_BYTES = 2 << 30
"""Memory for arrays over the corpus: the pairs are analysed in groups that fit into it."""

Singles = npt.NDArray[np.float32]


def analyze_pairs(pair_set: PairSet) -> tuple[list[PairAnalysis], list[ExactMoments]]:
    """The analysis of each pair, and the exact moments of its samplers."""
    pairs, embeddings, call = pair_set.pairs, pair_set.embeddings, pair_set.call
    data, config, ranks = pair_set.data, pair_set.config, pair_set.ranks
    banned = [banned_docs(data, pair.query_id) for pair in pairs]
    xq = pair_set.retriever.encode_queries([pair.text for pair in pairs], call.reporter)
    depth = min(config.depth + max(map(len, banned)), embeddings.num_docs)
    lists = _ranked_lists(pair_set, xq, depth)
    in_batch = np.array(
        [data.duplicates.position[name] for names in data.positives.values() for name in names]
    )
    analyses: list[PairAnalysis] = []
    exact: list[ExactMoments] = []
    size = max(1, _CORPUS_BYTES // (BYTES_A_DOCUMENT * embeddings.num_docs))
    with call.reporter.task("analysing", len(xq), "pair") as bar:
        for group in _groups(len(xq), size):
            scores = compute(xq[group], [pair.positive for pair in pairs[group]], embeddings)
            enumerations = []  # a pair itself would not fit: it has several arrays over the corpus
            for number, (of, own) in enumerate(zip(pairs[group], banned[group], strict=True)):
                listed = {kind: ranked.listed(of.query_id)[0] for kind, ranked in lists.items()}
                negatives = negatives_of(data, of.query_id, own)
                pair = Pair.of(scores, number, negatives, listed, config, pair_set.loss)
                analyses.append(analyze(pair, of, listed[BM25], in_batch, ranks, config))
                enumerations.append(Enumeration(pair, embeddings.num_docs))
                bar.advance()
            exact += _exact_moments(enumerations, scores, embeddings)
    return analyses, exact


def _ranked_lists(pair_set: PairSet, xq: Singles, depth: int) -> dict[str, RankedLists]:
    """BM25's ranking of each query, and that of the index if there is one."""
    call = pair_set.call
    texts = {pair.query_id: pair.text for pair in pair_set.pairs}
    bm25 = search_bm25(pair_set.dataset, texts, pair_set.config.ranking, depth, call)
    lists = {BM25: RankedLists.of(bm25)}
    if pair_set.retriever.embeddings is None:
        _, found = pair_set.retriever.search(xq, depth, call.reporter)
        rows = {pair.query_id: row for row, pair in enumerate(pair_set.pairs)}
        lists[ANCE] = RankedLists(found, None, rows)
    return lists


def _exact_moments(
    enumerations: Sequence[Enumeration], scores: CorpusScores, embeddings: Embeddings
) -> Iterator[ExactMoments]:
    """The moments of each pair's samplers; reads the corpus once."""
    weights = np.concatenate([each.weights for each in enumerations])
    pair_of = [number for number, each in enumerate(enumerations) for _ in each.weights]
    vectors = weighted_sums(weights, pair_of, scores.xq, embeddings)
    for number, each in enumerate(enumerations):
        own = vectors[np.array(pair_of) == number]
        query = scores.xq[number]
        yield each.moments(own, scores.positives[number], float(query @ query))


def _groups(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
