"""Measures of a run against labels, by ir_measures, in trec_eval's terms.

Every measure is averaged over the judged queries (`trec_eval -c`): a query without results counts
as 0. Ties are broken as in trec_eval, before any provider reads the run, so that all providers use
the same ranking.

Four more measures apply a measure of ir_measures to other labels: `Holes@k` is 1 - Judged@k (ICLR
App. A.2); `Overlap@k` is Judged@k with another run's top k as the judged documents; `Answers@k` and
`RegexAnswers@k` are Success@k with the passages that contain an answer as the relevant documents
(Top-k coverage of OpenQA: Karpukhin et al., EMNLP 2020, Sec. 5). `recall_levels` computes `IPrec`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import ir_measures

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.evaluation.recall_levels import interpolated_precision
from ance_cli.formats.dataset import Qrels
from ance_cli.formats.trec import Run, in_trec_order


class Labels(Enum):
    """What a measure compares the run with."""

    QRELS = "a file of labels"
    OTHER_RUN = "another run"
    ANSWERS = "a dataset's answers"
    PATTERNS = "a dataset's answers, as regular expressions"


_OWN = {
    "Holes": ("Judged", Labels.QRELS),
    "Overlap": ("Judged", Labels.OTHER_RUN),
    "Answers": ("Success", Labels.ANSWERS),
    "RegexAnswers": ("Success", Labels.PATTERNS),
}


@dataclass(frozen=True)
class Measure:
    """One measure: its name, how ir_measures computes it, and from which labels."""

    name: str
    computed: ir_measures.measures.Measure
    labels: Labels = Labels.QRELS
    complement: bool = False
    """Whether the value is 1 minus the computed one."""

    @property
    def cutoff(self) -> int:
        return int(self.computed["cutoff"])

    @property
    def is_total(self) -> bool:
        """Whether ir_measures adds up the values of the queries."""
        return isinstance(self.computed.aggregator(), ir_measures.measures.SumAgg)

    @property
    def is_at_recall(self) -> bool:
        """Whether `recall_levels` computes it."""
        return self.computed.NAME == "IPrec" and not self.computed["judged_only"]


@dataclass(frozen=True)
class Evidence:
    """Labels of measures that do not read the dataset's labels."""

    other_run: Run = field(default_factory=dict)
    answers: Mapping[Labels, Qrels] = field(default_factory=dict)
    """For `ANSWERS` and `PATTERNS`: query_id -> doc_id -> 1 for passages that contain an answer"""


@dataclass(frozen=True)
class Evaluation:
    """measure -> query_id -> value, over all judged queries."""

    per_query: dict[str, dict[str, float]]
    without_results: list[str]
    totals: frozenset[str] = frozenset()
    """The measures that count something over all queries, as NumQ, and are not averaged."""

    def factor(self, measure: str) -> int:
        """From the average over the judged queries to the value of the run."""
        return len(self.per_query[measure]) if measure in self.totals else 1

    def mean(self, measure: str) -> float:
        """The average over the judged queries; the sum of a measure that counts."""
        values = self.per_query[measure]
        return sum(values.values()) / len(values) * self.factor(measure)

    @property
    def means(self) -> dict[str, float]:
        return {measure: self.mean(measure) for measure in self.per_query}


# ---------------------------------------------------------------- the grammar


def parse_measures(text: str, available: Collection[Labels] = (Labels.QRELS,)) -> list[Measure]:
    """Measures in ir_measures' grammar, separated by spaces or commas outside parentheses.

    Raises `UsageProblem` for a measure that needs labels other than those `available`.
    """
    for name in (names := _split(text)):
        if len(name) > _LONGEST:
            raise UsageProblem(
                f"--measures: {name[:_LONGEST]!r}... is too long for a measure", hint=_MEASURES_HINT
            )
    measures = {measure.name: measure for measure in map(_parse, names)}
    if not measures:
        raise UsageProblem("--measures is empty", hint=_MEASURES_HINT)
    for measure in measures.values():
        if measure.labels not in available:
            raise UsageProblem(
                f"--measures: {measure.name} needs {measure.labels.value}",
                hint=_WHERE_LABELS_ARE[measure.labels],
            )
    return list(measures.values())


def _split(text: str) -> list[str]:
    names: list[str] = []
    depth = 0
    word = ""
    for letter in text + " ":
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if (letter.isspace() or letter == ",") and depth == 0:
            if word:
                names.append(word)
            word = ""
        else:
            word += letter
    if depth:
        raise UsageProblem(
            f"--measures: cannot read {word.strip()[:_LONGEST]!r}: its parentheses do not match",
            hint=_MEASURES_HINT,
        )
    return names


_EXAMPLE = {"1": {"d": 1, "e": 0}}, {"1": {"d": 2.0, "e": 1.0}}


def _parse(name: str) -> Measure:
    own = re.fullmatch(rf"({'|'.join(_OWN)})@([1-9]\d*)", name, re.ASCII)
    if own:
        if len(own[2]) > 9:
            raise UsageProblem(
                f"--measures: {name!r} has a number that is not below {_LIMIT}", hint=_MEASURES_HINT
            )
        computed, labels = _OWN[own[1]]
        return Measure(
            name, ir_measures.parse_measure(f"{computed}@{own[2]}"), labels, own[1] == "Holes"
        )
    try:
        measure = ir_measures.parse_measure(name)
        _check_parameters(name, measure)
        supported = ir_measures.DefaultPipeline.supports(measure)  # type: ignore[no-untyped-call]
    except _UNREADABLE as error:
        raise UsageProblem(
            f"--measures: cannot read {name!r} ({error})", hint=_MEASURES_HINT
        ) from error
    if not supported:
        raise UsageProblem(f"--measures: ir_measures cannot compute {name!r}", hint=_MEASURES_HINT)
    try:
        ir_measures.calc_aggregate([measure], *_EXAMPLE)
    except Exception as error:  # each provider has its own for a parameter that it does not take
        raise UsageProblem(
            f"--measures: {name!r} cannot be computed ({error})", hint=_MEASURES_HINT
        ) from error
    return Measure(str(measure), measure)


def _check_parameters(name: str, measure: ir_measures.measures.Measure) -> None:
    """Refuse what a measure lacks, and numbers for which a provider written in C ends the process:
    a cutoff of 0, and what does not fit into 32 bits."""
    lacking = [
        parameter
        for parameter, info in measure.SUPPORTED_PARAMS.items()
        if info.required and parameter not in measure.params
    ]
    numbers = [measure.params.get("cutoff"), *measure.params.values()]
    for value in measure.params.values():
        if isinstance(value, dict):
            numbers += [*value, *value.values()]
    problem = None
    if lacking:
        problem = f"lacks the parameter {' and '.join(lacking)}"
    elif any(isinstance(number, int) and abs(number) >= _LIMIT for number in numbers):
        problem = f"has a number that is not below {_LIMIT}"
    elif isinstance(numbers[0], int) and (numbers[0] < 1 or numbers[0] is True):
        problem = "has a cutoff that is not a number from 1 on"
    if problem:
        raise UsageProblem(f"--measures: cannot read {name!r}: it {problem}", hint=_MEASURES_HINT)


_LIMIT = 2**31
_LONGEST = 200
"""Characters of one measure."""
_UNREADABLE = (NameError, ValueError, SyntaxError, KeyError, AssertionError, TypeError,
               AttributeError, RecursionError, MemoryError)  # fmt: skip
"""What ir_measures raises for a text that is no measure."""
_MEASURES_HINT = "for instance: RR@10 nDCG@10 R@1000 Judged@10 'RR(rel=2)@10'"
_ANSWERS_HINT = "name the dataset whose queries.jsonl has the answers with --data"
_WHERE_LABELS_ARE = {
    Labels.QRELS: "name labels with --qrels FILE, or with --data and --split",
    Labels.OTHER_RUN: "name the other run first: ance eval OTHER RUN",
    Labels.ANSWERS: _ANSWERS_HINT,
    Labels.PATTERNS: _ANSWERS_HINT,
}


# ---------------------------------------------------------------- the values


Values = dict[str, float]
"""query_id -> value"""


def evaluate(
    run: Run, qrels: Qrels, measures: Sequence[Measure], evidence: Evidence = Evidence()
) -> Evaluation:
    """The measures of the run for each judged query, that is, each query of `qrels`.

    A query's labels may be empty if no measure reads them. Raises `BadInput` if the run has none of
    the judged queries.
    """
    if not any(query_id in run for query_id in qrels):
        raise BadInput(
            "the run and the labels have no query in common",
            hint="check that the run and the labels are of the same split",
        )
    computed: dict[str, Values] = {}
    by_qrels = [measure for measure in measures if measure.labels is Labels.QRELS]
    others = [[measure] for measure in measures if measure.labels is not Labels.QRELS]
    for group in [by_qrels, *others] if by_qrels else others:
        computed |= _values(run, qrels, group, _labels_of(group[0], qrels, evidence))
    return Evaluation(
        {measure.name: computed[measure.name] for measure in measures},
        [query_id for query_id in qrels if query_id not in run],
        frozenset(measure.name for measure in measures if measure.is_total),
    )


def _values(
    run: Run, judged: Iterable[str], measures: Sequence[Measure], labels: Qrels
) -> dict[str, Values]:
    """measure -> query_id -> value, for measures that read the same labels."""
    # queries are numbered because one of the providers accepts only numbers as query ids
    names = {str(number): query_id for number, query_id in enumerate(judged, start=1)}
    ranked = {number: _by_rank(run[name]) for number, name in names.items() if name in run}
    labelled = {number: labels[name] for number, name in names.items() if labels.get(name)}
    values = {measure.computed: dict.fromkeys(names.values(), 0.0) for measure in measures}
    provided = [measure.computed for measure in measures if not measure.is_at_recall]
    if provided and labelled:
        try:
            for metric in ir_measures.iter_calc(provided, labelled, ranked):
                if metric.query_id in names:
                    values[metric.measure][names[metric.query_id]] = float(metric.value)
        except ArithmeticError as error:  # Accuracy of a query without documents to tell apart
            asked = ", ".join(map(str, provided))
            raise BadInput(
                f"the measures {asked} cannot be computed for this run and these labels ({error})",
                hint="leave out the measure that is not defined for every query",
            ) from error
    for measure in (measure for measure in measures if measure.is_at_recall):
        level, rel = measure.computed["recall"], measure.computed["rel"]
        for number in labelled.keys() & ranked.keys():
            values[measure.computed][names[number]] = interpolated_precision(
                list(ranked[number]), labelled[number], level, rel
            )
    return {
        measure.name: {
            query_id: 1 - value if measure.complement else value
            for query_id, value in values[measure.computed].items()
        }
        for measure in measures
    }


def _by_rank(hits: Mapping[str, float]) -> dict[str, float]:
    """doc_id -> a score without ties, best first."""
    ordered = in_trec_order(hits)
    return {doc_id: float(len(ordered) - rank) for rank, (doc_id, _) in enumerate(ordered)}


def _labels_of(measure: Measure, qrels: Qrels, evidence: Evidence) -> Qrels:
    if measure.labels is Labels.OTHER_RUN:
        return {
            query_id: {doc_id: 1 for doc_id, _ in in_trec_order(hits)[: measure.cutoff]}
            for query_id, hits in evidence.other_run.items()
        }
    return qrels if measure.labels is Labels.QRELS else evidence.answers[measure.labels]
