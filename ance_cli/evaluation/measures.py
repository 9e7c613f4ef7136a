"""Measures of a run against labels, by ir_measures, in trec_eval's terms.

Every measure is averaged over the judged queries (`trec_eval -c`): a query without results counts
as zero. Ties are broken as trec_eval does before any provider sees the run, so that all providers
agree on the ranking.

Four measures more are ir_measures' own, of other labels: `Holes@k` is 1 - Judged@k (ICLR App. A.2);
`Overlap@k` is Judged@k where another run's top k is what is judged; `Answers@k` and
`RegexAnswers@k` are Success@k where a passage that holds an answer is the relevant one (Top-k
coverage of OpenQA: Karpukhin et al., EMNLP 2020, Sec. 5). `IPrec` is computed by `recall_levels`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import ir_measures

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.evaluation.recall_levels import interpolated_precision
from ance_cli.formats.dataset import Qrels
from ance_cli.formats.trec import Run, in_trec_order


class Labels(Enum):
    """What a measure needs besides the run."""

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
    """A measure that was asked for: its name, how ir_measures computes it, and of which labels."""

    name: str
    computed: ir_measures.measures.Measure
    labels: Labels = Labels.QRELS
    complement: bool = False
    """Whether the value is 1 - what is computed."""

    @property
    def cutoff(self) -> int:
        return int(self.computed["cutoff"])

    @property
    def is_at_recall(self) -> bool:
        """Whether `recall_levels` computes it."""
        return self.computed.NAME == "IPrec" and not self.computed["judged_only"]


@dataclass(frozen=True)
class Evidence:
    """What measures need besides the labels of the dataset."""

    other_run: Run = field(default_factory=dict)
    answers: Mapping[Labels, Qrels] = field(default_factory=dict)
    """For `ANSWERS` and `PATTERNS` the passages that hold one: query_id -> doc_id -> 1."""


@dataclass(frozen=True)
class Evaluation:
    """measure -> query_id -> value, over all judged queries."""

    per_query: dict[str, dict[str, float]]
    without_results: list[str]

    def mean(self, measure: str) -> float:
        """The average over the judged queries."""
        values = self.per_query[measure]
        return sum(values.values()) / len(values)

    @property
    def means(self) -> dict[str, float]:
        return {measure: self.mean(measure) for measure in self.per_query}


# ---------------------------------------------------------------- the grammar


def parse_measures(text: str, there: Collection[Labels] = (Labels.QRELS,)) -> list[Measure]:
    """Measures in ir_measures' grammar, separated by spaces or commas outside brackets.

    `there` is what there is to look at: a measure of something else is a `UsageProblem`.
    """
    measures = {measure.name: measure for measure in map(_parse, _split(text))}
    if not measures:
        raise UsageProblem("--measures names none", hint=_MEASURES_HINT)
    for measure in measures.values():
        if measure.labels not in there:
            raise UsageProblem(
                f"--measures: {measure.name} looks at {measure.labels.value}, and none was named",
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
            f"--measures: cannot read {word.strip()!r}: its brackets do not match",
            hint=_MEASURES_HINT,
        )
    return names


def _parse(name: str) -> Measure:
    own = re.fullmatch(rf"({'|'.join(_OWN)})@([1-9]\d*)", name)
    if own:
        computed, labels = _OWN[own[1]]
        return Measure(
            name, ir_measures.parse_measure(f"{computed}@{own[2]}"), labels, own[1] == "Holes"
        )
    try:
        measure = ir_measures.parse_measure(name)
        supported = ir_measures.DefaultPipeline.supports(measure)  # type: ignore[no-untyped-call]
    except (NameError, ValueError, SyntaxError, KeyError, AssertionError, TypeError) as error:
        raise UsageProblem(
            f"--measures: cannot read {name!r} ({error})", hint=_MEASURES_HINT
        ) from error
    if not supported:
        raise UsageProblem(f"--measures: nothing computes {name!r}", hint=_MEASURES_HINT)
    return Measure(str(measure), measure)


_MEASURES_HINT = "for instance: RR@10 nDCG@10 R@1000 Judged@10 'RR(rel=2)@10'"
_ANSWERS_HINT = "ance eval RUN --data DATASET takes the answers from the dataset's queries.jsonl"
_WHERE_LABELS_ARE = {
    Labels.QRELS: "name labels with --qrels FILE, or with --data and --split",
    Labels.OTHER_RUN: "ance eval OTHER RUN compares RUN with OTHER",
    Labels.ANSWERS: _ANSWERS_HINT,
    Labels.PATTERNS: _ANSWERS_HINT,
}


# ---------------------------------------------------------------- the values


def evaluate(
    run: Run, qrels: Qrels, measures: Sequence[Measure], evidence: Evidence = Evidence()
) -> Evaluation:
    """Measures of the run for each judged query, those of `qrels`.

    The labels of a query may be empty where no measure looks at them. Raises `BadInput` where no
    query is in both.
    """
    if not any(query_id in run for query_id in qrels):
        raise BadInput(
            "the run and the labels have no query in common",
            hint="do both come from the same split?",
        )
    names = {str(number): query_id for number, query_id in enumerate(qrels, start=1)}
    ranked = {}  # by number: one of the providers reads no other query ids
    for number, query_id in names.items():
        if query_id in run:
            hits = in_trec_order(run[query_id])
            ranked[number] = {doc_id: float(len(hits) - r) for r, (doc_id, _) in enumerate(hits)}
    computed: dict[str, dict[str, float]] = {}
    of_qrels = [measure for measure in measures if measure.labels is Labels.QRELS]
    others = [[measure] for measure in measures if measure.labels is not Labels.QRELS]
    for group in [of_qrels, *others] if of_qrels else others:
        found = _labels_of(group[0], qrels, evidence)
        labels = {number: found[name] for number, name in names.items() if found.get(name)}
        values = {measure.computed: dict.fromkeys(qrels, 0.0) for measure in group}
        theirs = [measure.computed for measure in group if not measure.is_at_recall]
        for metric in ir_measures.iter_calc(theirs, labels, ranked) if theirs and labels else ():
            if metric.query_id in names:
                values[metric.measure][names[metric.query_id]] = float(metric.value)
        for measure in (measure for measure in group if measure.is_at_recall):
            level, rel = measure.computed["recall"], measure.computed["rel"]
            for number in labels.keys() & ranked.keys():
                values[measure.computed][names[number]] = interpolated_precision(
                    list(ranked[number]), labels[number], level, rel
                )
        for measure in group:
            computed[measure.name] = {
                query_id: 1 - value if measure.complement else value
                for query_id, value in values[measure.computed].items()
            }
    return Evaluation(
        {measure.name: computed[measure.name] for measure in measures},
        [query_id for query_id in qrels if query_id not in run],
    )


def _labels_of(measure: Measure, qrels: Qrels, evidence: Evidence) -> Qrels:
    if measure.labels is Labels.OTHER_RUN:
        return {
            query_id: {doc_id: 1 for doc_id, _ in in_trec_order(hits)[: measure.cutoff]}
            for query_id, hits in evidence.other_run.items()
        }
    return qrels if measure.labels is Labels.QRELS else evidence.answers[measure.labels]
