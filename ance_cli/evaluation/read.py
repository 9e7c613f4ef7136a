"""`ance read`: answers to the queries of a run, read from its top passages, and their quality."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import ComputeConfig, ReadConfig, shaped_by
from ance_cli.errors import BadInput
from ance_cli.evaluation.answer_match import AnswerMatcher
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset, Passage, queries_of_split, read_answers, read_queries
from ance_cli.formats.hashing import hash_file, hash_json, hash_lines
from ance_cli.formats.journal import Journal
from ance_cli.formats.plan import AUTO, Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.formats.trec import in_trec_order, read_run
from ance_cli.models.reader import open_reader, reader_fingerprint
from ance_cli.retrieval.search import passages_of

if TYPE_CHECKING:
    from ance_cli.models.reading_model import Answer, Reader


def read(
    run: Path,
    dataset: Dataset,
    reader: Path,
    output: Path,
    config: ReadConfig = ReadConfig(),
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> Summary:
    """Write an answer to each query as JSON lines, read from the run's top `config.depth` passages.

    The queries are those of the dataset's split, or those of the run if no split is named. If the
    dataset has answers, each line and the summary include exact match and F1. The means are over
    the queries with answers; a query without results counts as 0.

    Raises `BadInput` if `reader` is not a reader, or if a query or a document is not in the
    dataset.
    """
    questions = _questions(run, dataset, config, call)
    inputs = questions.inputs(dataset, reader)
    settings = {**shaped_by(config, ReadConfig), "dtype": compute.dtype}
    plan = Plan("answers", output, settings, inputs, reads=[run, *dataset.files, reader])
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.of_output(output), plan.journal(call.force, call.reporter.say) as journal:
        started = time.monotonic()
        passages = _passages(run, dataset, questions, call)
        opened = open_reader(reader, config, compute)
        if plan.shaped_by["dtype"] == AUTO:
            plan.shaped_by["dtype"] = opened.dtype
        lines = _answer_lines(questions, passages, opened, journal, call)
        if opened.num_cut:
            call.reporter.say(
                f"{opened.num_cut:,} of {len(lines):,} questions were read without a part of their "
                "text or of their passages: the reader takes no more tokens (--depth)"
            )
        stats = _stats([orjson.loads(line) for line in lines])
        with plan.text_file(stats) as handle:
            handle.writelines(line + b"\n" for line in lines)
            stats["seconds"] = round(time.monotonic() - started + journal.seconds_before, 2)
        return made(plan, stats)


@dataclass(frozen=True)
class _Questions:
    """What is to be answered: texts, ranked doc ids and known answers, by query id."""

    texts: Mapping[str, str]
    ranked: Mapping[str, Sequence[str]]
    gold: Mapping[str, Sequence[str]]

    def inputs(self, dataset: Dataset, reader: Path) -> dict[str, str]:
        """The hashes of all that decides the answers."""
        ranked, texts = self.ranked.items(), self.texts.items()
        return {
            "run": hash_lines(" ".join([query_id, *doc_ids]) for query_id, doc_ids in ranked),
            "queries": hash_lines(f"{query_id}\t{text}" for query_id, text in texts),
            "answers": hash_json(self.gold),
            "corpus": hash_file(dataset.corpus),
            "reader": reader_fingerprint(reader),
        }


def _questions(run: Path, dataset: Dataset, config: ReadConfig, call: Call) -> _Questions:
    ranked = {
        query_id: [doc_id for doc_id, _ in in_trec_order(hits)[: config.depth]]
        for query_id, hits in read_run(run, call.skipped).items()
    }
    texts = _queries(run, ranked, dataset, call.skipped)
    ranked = {query_id: ranked.get(query_id, []) for query_id in texts}
    return _Questions(texts, ranked, _gold(dataset, texts, call))


def _passages(run: Path, dataset: Dataset, asked: _Questions, call: Call) -> dict[str, Passage]:
    """doc_id -> passage, for all documents of the rankings."""
    wanted = {doc_id for doc_ids in asked.ranked.values() for doc_id in doc_ids}
    passages = passages_of(dataset.corpus, wanted, call.skipped)
    if missing := wanted - passages.keys():
        raise BadInput(
            f"{run}: document {min(missing)!r} is not in the corpus",
            hint="name the dataset that the run was made from with --data",
        )
    return passages


def _answer_lines(
    asked: _Questions,
    passages: Mapping[str, Passage],
    reader: Reader,
    journal: Journal,
    call: Call,
) -> list[bytes]:
    """The lines of the output, in the order of the queries."""

    def line_of(query_id: str) -> bytes:
        own = [passages[doc_id] for doc_id in asked.ranked[query_id]]
        record = _record(query_id, asked.texts[query_id], own, reader, asked.gold.get(query_id))
        return orjson.dumps(record)

    lines = []
    with call.reporter.task("reading", len(asked.texts), "query") as bar:
        for query_id in asked.texts:
            lines.append(journal.result(query_id.encode(), partial(line_of, query_id)))
            bar.advance()
    return lines


def _stats(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "queries": len(records),
        "queries_without_an_answer": sum(record["answer"] is None for record in records),
        **_means(records),
    }


def _queries(
    run: Path, ranked: Mapping[str, Sequence[str]], dataset: Dataset, skipped: SkippedLines | None
) -> dict[str, str]:
    """query_id -> text, for the queries to answer."""
    if dataset.qrels is not None:
        queries = queries_of_split(dataset, skipped)
        if not any(query_id in ranked for query_id in queries):
            raise BadInput(
                f"{run}: has none of the {len(queries)} queries of the split",
                hint="name the split of the run's queries with --split",
            )
        return queries
    texts = read_queries(dataset.need("queries"), skipped)
    if unknown := next((query_id for query_id in ranked if query_id not in texts), None):
        raise BadInput(
            f"{run}: query {unknown!r} is not among the queries",
            hint="name the dataset that the run was made from with --data",
        )
    return {query_id: texts[query_id] for query_id in ranked}


def _gold(dataset: Dataset, queries: Mapping[str, str], call: Call) -> dict[str, list[str]]:
    """query_id -> the dataset's answers; reports queries without answers."""
    answers = read_answers(dataset.need("queries"), call.skipped, needed=False)
    found = {query_id: answers[query_id] for query_id in queries if query_id in answers}
    if not found:
        call.reporter.say("the dataset has no answers to these queries: no measure is computed")
    elif without := len(queries) - len(found):
        call.reporter.warn(
            f"{without} of {len(queries)} queries have no answer; the means leave them out"
        )
    return found


def _record(
    query_id: str,
    question: str,
    passages: Sequence[Passage],
    reader: Reader,
    gold: Sequence[str] | None,
) -> dict[str, Any]:
    """One line of the output."""
    from ance_cli.evaluation.reading import exact_match, f1

    answer = reader(question, passages)
    text = answer.text if answer else ""
    record = {
        "query_id": query_id,
        "question": question,
        "answer": answer.text if answer else None,
        "doc_id": _source(answer, passages) if answer else None,
        "score": answer.score if answer else None,
    }
    if gold is not None:
        record |= {"exact_match": exact_match(text, gold), "f1": f1(text, gold)}
    return record


def _source(answer: Answer, passages: Sequence[Passage]) -> str | None:
    """The passage that an answer was extracted from; for a generated answer, the first passage
    that contains the answer."""
    if answer.place is not None:
        return passages[answer.place].doc_id
    holds = AnswerMatcher([answer.text]).matches
    return next((passage.doc_id for passage in passages if holds(passage.text)), None)


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean exact match and F1 with 95 % intervals, over the queries with answers."""
    from ance_cli.evaluation.significance import confidence_interval

    found = {}
    for measure in ("exact_match", "f1"):
        values = [record[measure] for record in records if measure in record]
        if values:
            low, high = confidence_interval(values)
            found[measure] = {"mean": sum(values) / len(values), "low": low, "high": high}
    return found
