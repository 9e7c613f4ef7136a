"""Measures of a run against labels, by ir_measures, in trec_eval's terms.

Every measure is averaged over the judged queries (`trec_eval -c`): a query without results counts
as zero. Ties are broken as trec_eval does before any provider sees the run, so that all providers
agree on the ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import ir_measures

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import Qrels
from ance_cli.formats.trec import Run, in_trec_order


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


def parse_measures(text: str) -> list[ir_measures.measures.Measure]:
    """Measures in ir_measures' grammar, separated by spaces or commas outside brackets."""
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
    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            supported = ir_measures.DefaultPipeline.supports(measure)  # type: ignore[no-untyped-call]
        except (NameError, ValueError, SyntaxError, KeyError, AssertionError, TypeError) as error:
            raise UsageProblem(
                f"--measures: cannot read {name!r} ({error})", hint=_MEASURES_HINT
            ) from error
        if not supported:
            raise UsageProblem(f"--measures: nothing computes {name!r}", hint=_MEASURES_HINT)
        measures.append(measure)
    if not measures:
        raise UsageProblem("--measures names none", hint=_MEASURES_HINT)
    return measures


_MEASURES_HINT = "for instance: RR@10 nDCG@10 R@1000 Judged@10 'RR(rel=2)@10'"


def evaluate(run: Run, qrels: Qrels, measures: str) -> Evaluation:
    """Measures of the run for each judged query; raises `BadInput` where no query is in both."""
    parsed = parse_measures(measures)
    if not any(query_id in run for query_id in qrels):
        raise BadInput(
            "the run and the labels have no query in common",
            hint="do both come from the same split?",
        )
    names = {str(number): query_id for number, query_id in enumerate(qrels, start=1)}
    labels, ranked = {}, {}  # by number: one of the providers reads no other query ids
    for number, query_id in names.items():
        labels[number] = qrels[query_id]
        if query_id in run:
            hits = in_trec_order(run[query_id])
            ranked[number] = {doc_id: float(len(hits) - r) for r, (doc_id, _) in enumerate(hits)}
    per_query = {str(measure): dict.fromkeys(qrels, 0.0) for measure in parsed}
    for metric in ir_measures.iter_calc(parsed, labels, ranked):
        if metric.query_id in names:
            per_query[str(metric.measure)][names[metric.query_id]] = float(metric.value)
    return Evaluation(per_query, [query_id for query_id in qrels if query_id not in run])
