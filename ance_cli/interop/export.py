"""`ance export`: negatives and runs in the formats of other tools.

A row is one pair of a query and a positive, so that the negatives mined for a pair stay together.
Rows are written one at a time; a format with texts keeps the texts of the whole corpus in memory
(see `PassageTexts`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import ExportConfig
from ance_cli.config.setting import check
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.dataset import (
    Dataset,
    Passage,
    Query,
    positives_of,
    read_answers,
    read_corpus,
    read_qrels,
    read_queries,
)
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import STDIO, refuse_stdio
from ance_cli.formats.manifest import read_manifest
from ance_cli.formats.negatives_file import PairNegatives, read_negatives
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.formats.trec import Run, in_trec_order, read_run
from ance_cli.interop import (
    ANN_TRAINING_DATA,
    DPR_READER,
    FLAGEMBEDDING,
    SENTENCE_TRANSFORMERS,
    TEVATRON,
    TEVATRON_V2,
    ance,
    arrow,
    dpr,
    flagembedding,
    msmarco,
    sentence_transformers,
    tevatron,
)
from ance_cli.interop.records import Example
from ance_cli.mining.text_filters import PassageTexts
from ance_cli.retrieval.search import passages_of


def export_negatives(
    form: str,
    negatives: Path,
    dataset: Dataset,
    output: Path,
    config: ExportConfig = ExportConfig(),
    call: Call = Call(),
) -> Summary:
    """Write the pairs of a negatives file in one of `interop.NEGATIVES_FORMS`.

    Skips pairs without negatives, which no other tool can train on. The columns of
    sentence-transformers need the same number of negatives in every row, `config.negatives` (0:
    pairs alone) or the largest number in the file; pairs with fewer are skipped. They have a
    teacher's scores if every row has them all. Raises `BadInput` if the file does not fit the
    dataset, or if every pair is skipped.
    """
    _check_output(form, output)
    check(
        config.negatives != 0 or form == SENTENCE_TRANSFORMERS,
        f"a row of {form} needs negatives: --negatives must be at least 1",
    )
    plan = _plan_of_negatives(form, negatives, dataset, output, config)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.of_output(output):
        source = _Source(negatives, dataset, config, call.skipped)
        if form in _FOLDERS:
            _write_folder(plan, source, _FOLDERS[form])
        else:
            with plan.text_file(source.stats) as handle:
                _FILES[form](handle, source, output)
                source.need_pairs()
    if left_out := source.stats["pairs_left_out"]:
        call.reporter.warn(f"skipped {left_out} pairs that have too few negatives for a row")
    if source.stats.get("pairs_without_scores"):
        call.reporter.warn(
            f"{source.stats['pairs_without_scores']} of {source.stats['pairs']} pairs lack a score "
            "of the teacher, so the rows have no column with scores"
        )
    return made(plan, source.stats)


def _check_output(form: str, output: Path) -> None:
    if form in _FOLDERS:
        refuse_stdio(output, f"an export to {form}")
    if _is_table(output):
        if form != SENTENCE_TRANSFORMERS:
            raise UsageProblem(
                f"{output}: only {SENTENCE_TRANSFORMERS} can be written as Arrow or Parquet, not "
                f"{form}",
                hint="name a .jsonl file with -o",
            )
        arrow.check_output(output)


def _is_table(output: Path) -> bool:
    return arrow.is_arrow(output) or arrow.is_parquet(output)


def _plan_of_negatives(
    form: str, negatives: Path, dataset: Dataset, output: Path, config: ExportConfig
) -> Plan:
    parts = ("corpus", "queries", "qrels")
    return Plan(
        "export-folder" if form in _FOLDERS else "export",
        output,
        shaped_by={"form": form, "min_rel": config.min_rel, "negatives": config.negatives,
                   "separator": config.separator},
        inputs={"negatives": _hash_of(negatives)}
        | {part: hash_file(dataset.need(part)) for part in parts},
        reads=[negatives, *dataset.files],
        ran_with={"negatives": str(negatives)},
    )  # fmt: skip


def _hash_of(source: Path) -> str:
    if source == STDIO:
        raise UsageProblem("ance export cannot read from stdin", hint="name a file")
    return hash_file(source)


def _line(row: Any) -> bytes:
    return orjson.dumps(row) + b"\n"


class _Texts:
    """The passages of a corpus by their ids."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._positions: dict[str, int] = {}
        self._texts = PassageTexts(self._numbered(passages))

    def _numbered(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        for position, passage in enumerate(passages):
            self._positions[passage.doc_id] = position
            yield passage

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._positions

    def __getitem__(self, doc_id: str) -> Passage:
        position = self._positions[doc_id]
        return Passage(doc_id, self._texts.title(position), self._texts.body(position))


class _Source:
    """A negatives file and its dataset; `stats` counts what was written."""

    def __init__(
        self, path: Path, dataset: Dataset, config: ExportConfig, skipped: SkippedLines | None
    ) -> None:
        self.path, self.dataset, self.config, self.skipped = path, dataset, config, skipped
        self.stats: dict[str, Any] = {"pairs": 0, "negatives": 0, "pairs_left_out": 0}
        self.queries = read_queries(dataset.need("queries"), skipped)
        self.qrels = read_qrels(dataset.need("qrels"), self.queries, skipped=skipped)
        self._positives = positives_of(self.qrels, config.min_rel)

    def corpus(self) -> Iterator[Passage]:
        """Yield the passages."""
        return read_corpus(self.dataset.corpus, self.skipped)

    @cached_property
    def texts(self) -> _Texts:
        return _Texts(self.corpus())

    def shape(self) -> tuple[int, bool]:
        """The negatives of a row, and whether every row has all of a teacher's scores."""
        found = [(len(pair.negative_ids), _scored(pair)) for pair in self._all_pairs(self.texts)]
        width = self.config.negatives
        if width is None:
            width = max(1, max(count for count, _ in found))
        scored = [width > 0 and first >= width for count, first in found if count >= width]
        if any(scored) and not all(scored):
            self.stats["pairs_without_scores"] = scored.count(False)
        return width, all(scored)

    def _all_pairs(self, known_docs: Container[str]) -> Iterator[PairNegatives]:
        return read_negatives(self.path, self.queries, known_docs, self._positives, self.skipped)

    def pairs(self, known_docs: Container[str], at_least: int = 1) -> Iterator[PairNegatives]:
        """Yield the pairs with at least `at_least` negatives, and at most `config.negatives`."""
        for pair in self._all_pairs(known_docs):
            pair.negative_ids = pair.negative_ids[: self.config.negatives]
            pair.teacher_scores = pair.teacher_scores[: self.config.negatives]
            if len(pair.negative_ids) < at_least:
                self.stats["pairs_left_out"] += 1
                continue
            self.stats["pairs"] += 1
            self.stats["negatives"] += len(pair.negative_ids)
            yield pair

    def examples(self, at_least: int = 1) -> Iterator[Example]:
        """Yield the same pairs with their texts."""
        for pair in self.pairs(self.texts, at_least):
            yield Example(
                self.query(pair),
                self.texts[pair.positive_id],
                [self.texts[doc_id] for doc_id in pair.negative_ids],
                pair.teacher_scores,
                pair.teacher_positive_score,
            )

    def query(self, pair: PairNegatives) -> Query:
        """The pair's query."""
        return Query(pair.query_id, self.queries[pair.query_id])

    def need_pairs(self) -> None:
        """Raise `BadInput` if no pair was written."""
        if not self.stats["pairs"]:
            raise BadInput(
                f"{self.path}: each of the {self.stats['pairs_left_out']} pairs has fewer "
                f"negatives than a row needs ({self.config.negatives or 1})",
                hint="lower --negatives, or mine more negatives",
            )


def _scored(pair: PairNegatives) -> int:
    """How many negatives, from the first on, have a score of the teacher that the positive has."""
    if pair.teacher_positive_score is None:
        return 0
    scores = [*pair.teacher_scores, None]
    return scores.index(None)


# -------------------------------------------------------------------- one file


def _tevatron(handle: IO[bytes], source: _Source, _: Path) -> None:
    for example in source.examples():
        handle.write(_line(tevatron.row_with_texts(example)))


def _flagembedding(handle: IO[bytes], source: _Source, _: Path) -> None:
    for example in source.examples():
        handle.write(_line(flagembedding.row_of(example, source.config.separator)))


def _columns(handle: IO[bytes], source: _Source, output: Path) -> None:
    width, scored = source.shape()
    rows = (
        sentence_transformers.row_of(example, source.config.separator, scored)
        for example in source.examples(at_least=width)
    )
    if _is_table(output):
        schema = sentence_transformers.schema(width, scored)
        arrow.write(handle, arrow.batches_of(rows, schema), schema, output)
    else:
        handle.writelines(map(_line, rows))


_FILES: dict[str, Callable[[IO[bytes], _Source, Path], None]] = {
    TEVATRON: _tevatron,
    FLAGEMBEDDING: _flagembedding,
    SENTENCE_TRANSFORMERS: _columns,
}


# -------------------------------------------------------------------- a folder


def _write_folder(plan: Plan, source: _Source, write: Callable[[Path, _Source], None]) -> None:
    with plan.new_partial() as folder:
        write(folder, source)
        source.need_pairs()
    plan.publish_folder({}, source.stats)


def _tevatron_v2(folder: Path, source: _Source) -> None:
    known: set[str] = set()
    with open(folder / "corpus.jsonl", "wb") as handle:
        for passage in source.corpus():
            known.add(passage.doc_id)
            handle.write(_line(tevatron.corpus_record(passage, source.config.separator)))
    with open(folder / "train.jsonl", "wb") as handle:
        for pair in source.pairs(known):
            row = tevatron.row_of_ids(source.query(pair), pair.positive_id, pair.negative_ids)
            handle.write(_line(row))


def _training_data(folder: Path, source: _Source) -> None:
    docs = _positions([passage.doc_id for passage in source.corpus()])
    queries = _positions(list(source.queries), source.qrels)
    with open(folder / ance.TRAINING_DATA, "wb") as handle:
        for pair in source.pairs(docs):
            negatives = [docs[doc_id] for doc_id in pair.negative_ids]
            handle.write(ance.line_of(queries[pair.query_id], docs[pair.positive_id], negatives))
    (folder / ance.MEASURES).write_bytes(ance.measures(_step_of(source.path)))


def _positions(ids: list[str], kept: Container[str] | None = None) -> dict[str, int]:
    """id -> position in ANCE's preprocessed data, which has only the `kept` ids (None: all)."""
    ordered = (each for each in ance.preprocessed_order(ids) if kept is None or each in kept)
    return {each: position for position, each in enumerate(ordered)}


def _step_of(negatives: Path) -> int:
    """The step of the checkpoint that mined the negatives; 0 if it is unknown."""
    try:
        return int(read_manifest(negatives, "negatives")["shaped_by"].get("checkpoint_step", 0))
    except Mismatch:  # no manifest: the file comes from a pipe, an editor or an import
        return 0


_FOLDERS = {TEVATRON_V2: _tevatron_v2, ANN_TRAINING_DATA: _training_data}


# -------------------------------------------------------------------- runs


def export_run(
    form: str,
    run: Path,
    output: Path,
    dataset: Dataset | None = None,
    config: ExportConfig = ExportConfig(),
    call: Call = Call(),
) -> Summary:
    """Write the `config.depth` best documents of each query in one of `interop.RUN_FORMS`.

    DPR's form needs a `dataset` with texts and answers. `has_answer` is DPR's test of a passage's
    text (see `AnswerMatcher`); it is false if the query has no answers. Raises `BadInput` if a
    query or a document is not in the dataset.
    """
    inputs = {"run": _hash_of(run)}
    if form == DPR_READER:
        if dataset is None:
            raise UsageProblem(
                f"{form} needs texts and answers", hint="name the dataset with --data"
            )
        inputs |= {part: hash_file(dataset.need(part)) for part in ("corpus", "queries")}
    plan = Plan(
        "export", output, {"form": form, "depth": config.depth}, inputs, {"run": str(run)},
        reads=[run, *(dataset.files if dataset else [])],
    )  # fmt: skip
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.of_output(output):
        found = read_run(run, call.skipped)
        stats: dict[str, Any] = {"queries": len(found)}
        with plan.text_file(stats) as handle:
            if form == DPR_READER:
                assert dataset is not None
                stats |= _write_reader_rows(handle, found, run, dataset, config.depth, call.skipped)
            else:
                for query_id, hits in found.items():
                    ranked = [doc_id for doc_id, _ in in_trec_order(hits)[: config.depth]]
                    handle.write(msmarco.run_lines(query_id, ranked))
    if without := stats.get("queries_without_answers"):
        call.reporter.warn(
            f"{without} of {len(found)} queries have no answers, so their has_answer is false"
        )
    return made(plan, stats)


def _write_reader_rows(
    handle: IO[bytes],
    run: Run,
    name: Path,
    dataset: Dataset,
    depth: int,
    skipped: SkippedLines | None,
) -> dict[str, Any]:
    """Write one JSON list with one row per line; returns the counts of answers for the stats."""
    from ance_cli.evaluation.answer_coverage import passages_with_answers
    from ance_cli.evaluation.answer_match import AnswerMatcher, answer_tokens

    queries = read_queries(dataset.need("queries"), skipped)
    if unknown := [query_id for query_id in run if query_id not in queries]:
        raise BadInput(
            f"{name}: query {unknown[0]!r} is not among the queries",
            hint="name the dataset that the run was made from with --data",
        )
    answers = read_answers(dataset.need("queries"), skipped)
    ranked = {query_id: in_trec_order(hits)[:depth] for query_id, hits in run.items()}
    wanted = {doc_id for hits in ranked.values() for doc_id, _ in hits}
    passages = passages_of(dataset.corpus, wanted, skipped)
    matchers = {query_id: AnswerMatcher(answers.get(query_id, ())) for query_id in ranked}
    tests = {query_id: matcher.matches_tokens for query_id, matcher in matchers.items()}
    held = passages_with_answers([run], depth, tests, answer_tokens, passages.values())
    for number, (query_id, hits) in enumerate(ranked.items()):
        row = dpr.reader_row(
            queries[query_id],
            answers.get(query_id, []),
            [(passages[doc], score, doc in held.get(query_id, {})) for doc, score in hits],
        )
        handle.write((b",\n" if number else b"[\n") + orjson.dumps(row))
    handle.write(b"\n]\n")
    return {
        "queries_with_an_answer_found": len(held),
        "queries_without_answers": sum(query_id not in answers for query_id in ranked),
    }
