"""The queries, positives and corpus that negatives are drawn for and from."""

from __future__ import annotations

from dataclasses import dataclass

from ance_cli.call import Call, SkippedLines
from ance_cli.config import DrawConfig
from ance_cli.formats.dataset import Dataset, positives_of, read_corpus, read_qrels, read_queries
from ance_cli.formats.merged import read_shares
from ance_cli.formats.negatives_file import Texts
from ance_cli.mining.false_negatives import DatasetScope, DuplicateIndex


@dataclass(frozen=True)
class MiningData:
    """Queries with their positives, and the corpus."""

    queries: dict[str, str]
    """query_id -> text, for the queries that have a positive"""
    positives: dict[str, list[str]]
    duplicates: DuplicateIndex
    scope: DatasetScope | None
    """For a merged dataset; otherwise None."""

    @property
    def num_docs(self) -> int:
        """Documents in the corpus."""
        return len(self.duplicates.doc_ids)


def read_mining_data(dataset: Dataset, config: DrawConfig, call: Call) -> MiningData:
    """Read the queries, the labels and the corpus, and check them against each other.

    Warns if the depth is over a tenth of the corpus, because most candidates are then not hard.
    """
    queries = read_queries(dataset.need("queries"), call.skipped)
    duplicates = DuplicateIndex(read_corpus(dataset.corpus, call.skipped), queries)
    qrels = read_qrels(dataset.need("qrels"), queries, duplicates.position, call.skipped)
    positives = positives_of(qrels, config.min_rel)
    shares = read_shares(dataset)
    scope = DatasetScope(duplicates.doc_ids, list(shares)) if shares else None
    own = {query_id: queries[query_id] for query_id in positives}
    if in_corpus := sum(bool(duplicates.itself(query_id)) for query_id in own):
        call.reporter.say(
            f"{in_corpus} of {len(own)} queries are documents of the corpus themselves: none is "
            "its own negative"
        )
    data = MiningData(own, positives, duplicates, scope)
    if config.negatives and config.depth * 10 > data.num_docs:
        call.reporter.warn(
            f"--depth {config.depth} is over a tenth of the {data.num_docs} documents: most of "
            "these negatives are not hard"
        )
    return data


def all_texts(dataset: Dataset, skipped: SkippedLines | None) -> Texts:
    """The texts of every query and document, for `--with-text`; they are held in memory."""
    passages = read_corpus(dataset.corpus, skipped)
    return Texts(
        read_queries(dataset.need("queries"), skipped),
        {passage.doc_id: passage.joined(" ") for passage in passages},
    )
