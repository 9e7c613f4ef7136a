"""`ance eval`: measures of one run, or of several against the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.call import Call, SkippedLines
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import (
    Dataset,
    Qrels,
    read_answers,
    read_corpus,
    read_qrels,
    read_queries,
)
from ance_cli.formats.jsonl import DAMAGE, STDIO, is_stream, open_input, open_output
from ance_cli.formats.summary import Summary
from ance_cli.formats.trec import Run, read_run
from ance_cli.retrieval.search import passages_of

if TYPE_CHECKING:
    from ance_cli.evaluation.measures import Evaluation, Labels, Measure


def evaluate_runs(
    runs: list[Path],
    qrels: Path | None,
    measures: str,
    per_query: Path | None = None,
    dataset: Dataset | None = None,
    cases: int = 0,
    ignore_identical_ids: bool = False,
    call: Call = Call(),
) -> Summary:
    """Means over the judged queries with 95 % intervals, and paired tests against the first run.

    Judged queries are those with labels. Without `qrels`, only `Answers@k` and `Overlap@k` can be
    measured; the judged queries are then those with answers, or those of the first run if the
    dataset has no answers. p-values are also reported with Holm's correction, over the tests of one
    measure for all runs. `dataset` has the texts for `Answers@k` and for `cases`: the number of
    queries to show on which a run gains most over the first run by the first measure, and as many
    on which it loses most. `ignore_identical_ids` leaves the document with a query's own id out of
    the runs, as BEIR does. `per_query` is a TSV file to write: run, query_id, measure, value.
    """
    from ance_cli.evaluation.measures import Evidence, Labels, evaluate, parse_measures

    available = {
        Labels.QRELS: qrels is not None,
        Labels.OTHER_RUN: len(runs) > 1,
        Labels.ANSWERS: dataset is not None,
        Labels.PATTERNS: dataset is not None,
    }
    asked = parse_measures(measures, [labels for labels, given in available.items() if given])
    _check_files(runs, qrels, per_query, dataset)
    _check_cases(cases, len(runs), asked, dataset)
    judged = read_qrels(qrels, skipped=call.skipped) if qrels is not None else {}
    ranked = {str(path): read_run(path, call.skipped) for path in runs}
    own = {name: _retrieve_themselves(run, ignore_identical_ids) for name, run in ranked.items()}
    first_run = next(iter(ranked.values()))
    answers = _answer_labels(asked, ranked.values(), dataset, judged, call)
    if not judged:
        judged = {query_id: {} for labels in answers.values() for query_id in labels}
        judged = judged or {query_id: {} for query_id in first_run}

    evaluations = {}
    for name, run in ranked.items():
        is_first = run is first_run
        of_run = [m for m in asked if not (is_first and m.labels is Labels.OTHER_RUN)]
        evaluations[name] = evaluate(run, judged, of_run, Evidence(first_run, answers))
    found: Summary = {
        "kind": "evaluation", "qrels": str(qrels) if qrels else None, "queries": len(judged),
        "ignore_identical_ids": ignore_identical_ids,
        "runs": [
            {
                "run": name,
                "judged_queries_without_results": len(evaluation.without_results),
                "queries_that_retrieve_themselves": len(own[name] & judged.keys()),
                "measures": _means(evaluation),
            }
            for name, evaluation in evaluations.items()
        ],
    }  # fmt: skip
    _add_tests(found["runs"], list(evaluations.values()))
    if cases:
        assert dataset is not None
        _add_cases(found["runs"], ranked, evaluations, judged, cases)
        _add_texts(found["runs"][1:], dataset, call.skipped)
    if per_query is not None:
        _write_per_query(per_query, evaluations)
    return found


_HEAD = b"run\tquery_id\tmeasure\tvalue\n"
"""The first line of the values of each query."""


def _retrieve_themselves(run: Run, leave_out: bool) -> set[str]:
    """The queries whose results have a document with their own id; `leave_out` removes it."""
    found = {query_id for query_id, hits in run.items() if query_id in hits}
    if leave_out:
        for query_id in found:
            del run[query_id][query_id]
    return found


def _check_files(
    runs: list[Path], qrels: Path | None, per_query: Path | None, dataset: Dataset | None
) -> None:
    if len(set(runs)) < len(runs):
        raise UsageProblem("a run is named twice", hint="name each run once")
    if per_query == STDIO:
        raise UsageProblem("--per-query cannot be stdout", hint="name a file with --per-query")
    read = [*runs, *([qrels] if qrels else []), *(dataset.files if dataset else [])]
    if per_query is not None and per_query.resolve() in {path.resolve() for path in read}:
        raise UsageProblem(
            f"--per-query {per_query}: this command reads the file, and would replace it",
            hint="name another file with --per-query",
        )
    if per_query is not None and per_query.exists() and not is_stream(per_query):
        if per_query.is_dir():
            raise UsageProblem(
                f"--per-query {per_query}: is a folder, expected a file",
                hint="name a file with --per-query",
            )
        try:
            with open_input(per_query) as handle:
                is_ours = handle.readline(len(_HEAD) + 1) in (_HEAD, b"")
        except DAMAGE:
            is_ours = False
        if not is_ours:
            raise UsageProblem(
                f"--per-query {per_query}: exists and was not written by --per-query",
                hint="name another file with --per-query, or remove this one first",
            )


def _check_cases(
    cases: int, num_runs: int, asked: Sequence[Measure], dataset: Dataset | None
) -> None:
    from ance_cli.evaluation.measures import Labels

    if cases < 0:
        raise UsageProblem("--cases must not be negative")
    if not cases:
        return
    if num_runs < 2:
        raise UsageProblem("--cases needs at least two runs", hint="use ance eval RUN OTHER")
    if dataset is None:
        raise UsageProblem("--cases needs the texts of a dataset", hint="name it with --data")
    dataset.need("queries")
    if asked[0].labels is Labels.OTHER_RUN:
        raise UsageProblem(
            f"--cases compares by the first measure, and {asked[0].name} is not measured for the "
            "first run",
            hint="name another measure first in --measures",
        )


def _means(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    from ance_cli.evaluation.significance import confidence_interval

    found = {}
    for measure, values in evaluation.per_query.items():
        low, high = confidence_interval(list(values.values()))
        factor = evaluation.factor(measure)
        found[measure] = {
            "mean": evaluation.mean(measure), "low": factor * low, "high": factor * high,
        }  # fmt: skip
    return found


# ---------------------------------------------------------------- answers


def _answer_labels(
    asked: Sequence[Measure],
    runs: Iterable[Run],
    dataset: Dataset | None,
    judged: Qrels,
    call: Call,
) -> dict[Labels, Qrels]:
    """For each kind of answer that a measure reads: query_id -> doc_id -> 1 for each retrieved
    passage that contains an answer."""
    from ance_cli.evaluation.answer_coverage import passages_with_answers
    from ance_cli.evaluation.answer_match import (
        AnswerMatcher,
        PatternMatcher,
        answer_tokens,
        normalised,
    )
    from ance_cli.evaluation.measures import Labels

    depths = {
        kind: max(measure.cutoff for measure in asked if measure.labels is kind)
        for kind in (Labels.ANSWERS, Labels.PATTERNS)
        if any(measure.labels is kind for measure in asked)
    }
    if not depths or dataset is None:
        return {}
    answers = read_answers(dataset.need("queries"), call.skipped)
    if without := len(judged.keys() - answers.keys()):
        call.reporter.warn(
            f"{without} of {len(judged)} judged queries have no answer; they count as 0"
        )
    query_ids = [query_id for query_id in judged or answers if query_id in answers]
    found = {}
    tests: dict[str, Callable[[str], bool]]
    for kind, depth in depths.items():
        if kind is Labels.ANSWERS:
            prepare = answer_tokens
            tests = {name: AnswerMatcher(answers[name]).matches_tokens for name in query_ids}
        else:
            prepare = normalised
            matchers = {name: PatternMatcher(answers[name]) for name in query_ids}
            tests = {name: matcher.matches_normalised for name, matcher in matchers.items()}
            broken = [(name, text) for name, found in matchers.items() for text in found.broken]
            if broken:
                query_id, text = broken[0]
                call.reporter.warn(
                    f"{len(broken)} answers are not valid regular expressions and match nothing; "
                    f"the first is {text!r} of query {query_id!r}"
                )
        passages = read_corpus(dataset.corpus, call.skipped)
        held = passages_with_answers(runs, depth, tests, prepare, passages)
        found[kind] = {query_id: held.get(query_id, {}) for query_id in query_ids}
    return found


# ---------------------------------------------------------------- against the first run


def _add_tests(rows: list[dict[str, Any]], evaluations: list[Evaluation]) -> None:
    """Paired tests of each later run against the first, with Holm's correction for each measure."""
    from ance_cli.evaluation.significance import holm, paired_test

    first, *others = evaluations
    for measure, values in first.per_query.items():
        tests = [
            paired_test(list(values.values()), list(other.per_query[measure].values()))
            for other in others
        ]
        corrected = zip(
            holm([test.p_randomisation for test in tests]),
            holm([test.p_t for test in tests]),
            strict=True,
        )
        for row, test, (randomisation, t) in zip(rows[1:], tests, corrected, strict=True):
            row["measures"][measure] |= {
                "difference": first.factor(measure) * test.difference,
                "p_randomisation": test.p_randomisation,
                "p_t": test.p_t,
                "p_randomisation_holm": randomisation,
                "p_t_holm": t,
            }


def _add_cases(
    rows: list[dict[str, Any]],
    runs: dict[str, Run],
    evaluations: dict[str, Evaluation],
    judged: Qrels,
    count: int,
) -> None:
    """Each later run's largest gains and losses against the first run, by the first measure."""
    from ance_cli.evaluation.cases import documents_of, wins_and_losses

    name, *others = runs
    measure = next(iter(evaluations[name].per_query))
    first = evaluations[name].per_query[measure]
    for row, other in zip(rows[1:], others, strict=True):
        second = evaluations[other].per_query[measure]
        wins, losses = wins_and_losses(first, second, count)
        row["cases"] = {"measure": measure}
        for kind, query_ids in (("wins", wins), ("losses", losses)):
            row["cases"][kind] = [
                {
                    "query_id": query_id,
                    "first": first[query_id],
                    "second": second[query_id],
                    "documents": [
                        asdict(document)
                        for document in documents_of(
                            runs[name].get(query_id, {}),
                            runs[other].get(query_id, {}),
                            judged[query_id],
                        )
                    ],
                }
                for query_id in query_ids
            ]


def _add_texts(rows: list[dict[str, Any]], dataset: Dataset, skipped: SkippedLines | None) -> None:
    """The texts of all cases."""
    shown = [case for row in rows for kind in ("wins", "losses") for case in row["cases"][kind]]
    queries = read_queries(dataset.need("queries"), skipped)
    wanted = {document["doc_id"] for case in shown for document in case["documents"]}
    passages = passages_of(dataset.corpus, wanted, skipped)
    for case in shown:
        case["query"] = queries.get(case["query_id"])
        for document in case["documents"]:
            passage = passages.get(document["doc_id"])
            document["title"] = passage.title if passage else None
            document["text"] = passage.text if passage else None


def _write_per_query(path: Path, evaluations: dict[str, Evaluation]) -> None:
    with open_output(path) as handle:
        handle.write(_HEAD)
        for name, evaluation in evaluations.items():
            for measure, values in evaluation.per_query.items():
                for query_id, value in values.items():
                    handle.write(f"{name}\t{query_id}\t{measure}\t{value:.6f}\n".encode())
