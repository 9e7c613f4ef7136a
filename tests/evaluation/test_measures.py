"""Measures against brute-force twins, and against what NIST's trec_eval prints."""

import functools
import itertools
import math
import random
import shutil
import struct

import ir_measures
import pytest

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.evaluation import measures
from ance_cli.evaluation.measures import Evidence, Labels, parse_measures
from ance_cli.formats.dataset import read_qrels
from ance_cli.formats.trec import read_run


def evaluate(run, qrels, names, evidence=Evidence()):
    """Like `ance eval`, with every kind of labels."""
    return measures.evaluate(run, qrels, parse_measures(names, available=tuple(Labels)), evidence)


# ---------------------------------------------------------------- brute-force twins


def ranking(scores):
    """Document ids as trec_eval ranks them: 32-bit scores, then ids, both descending."""
    packed = {doc_id: struct.unpack("f", struct.pack("f", s))[0] for doc_id, s in scores.items()}
    return [d for _, d in sorted(((score, d) for d, score in packed.items()), reverse=True)]


def reciprocal_rank(ranked, judged, cutoff, rel=1):
    for rank, doc_id in enumerate(ranked[:cutoff], start=1):
        if judged.get(doc_id, 0) >= rel:
            return 1 / rank
    return 0.0


def recall(ranked, judged, cutoff, rel=1):
    relevant = {doc_id for doc_id, grade in judged.items() if grade >= rel}
    return len(relevant.intersection(ranked[:cutoff])) / len(relevant) if relevant else 0.0


def ndcg(ranked, judged, cutoff):
    def gain(grades):
        return sum(max(g, 0) / math.log2(rank + 1) for rank, g in enumerate(grades, start=1))

    best = gain(sorted(judged.values(), reverse=True)[:cutoff])
    return gain([judged.get(doc_id, 0) for doc_id in ranked[:cutoff]]) / best if best > 0 else 0.0


def interpolated_precision(ranked, judged, level):
    """The best precision from a recall level on, rounded to whole documents."""
    relevant = {doc_id for doc_id, grade in judged.items() if grade > 0}
    wanted = math.floor(level * len(relevant) + 0.5)
    found = list(itertools.accumulate(doc_id in relevant for doc_id in ranked))
    return max(
        (hits / rank for rank, hits in enumerate(found, start=1) if hits >= wanted), default=0.0
    )


def random_labels_and_run(seed):
    """Graded labels and a run full of ties, some of which only 32 bits see."""
    rng = random.Random(seed)
    docs = [f"d{n}" for n in range(60)]
    levels = [1.0, 1.0 + 1e-9, 0.5, 0.25, -2.0]
    qrels, run = {}, {}
    for n in range(25):
        judged = rng.sample(docs, rng.randint(1, 20))
        qrels[f"q{n}"] = {doc_id: rng.choice([0, 0, 1, 2, 3]) for doc_id in judged}
        hits = rng.sample(docs, rng.randint(1, 40))
        run[f"q{n}"] = {doc_id: rng.choice([*levels, rng.random()]) for doc_id in hits}
    del run["q3"], run["q7"]
    run["unjudged"] = {"d1": 1.0}
    return qrels, run


TWINS = {
    "RR@10": lambda ranked, judged: reciprocal_rank(ranked, judged, 10),
    "RR@1": lambda ranked, judged: reciprocal_rank(ranked, judged, 1),
    "RR(rel=2)@10": lambda ranked, judged: reciprocal_rank(ranked, judged, 10, rel=2),
    "R@5": lambda ranked, judged: recall(ranked, judged, 5),
    "R@1000": lambda ranked, judged: recall(ranked, judged, 1000),
    "R(rel=3)@20": lambda ranked, judged: recall(ranked, judged, 20, rel=3),
    "nDCG@10": lambda ranked, judged: ndcg(ranked, judged, 10),
    "nDCG@3": lambda ranked, judged: ndcg(ranked, judged, 3),
    "IPrec@0.1": lambda ranked, judged: interpolated_precision(ranked, judged, 0.1),
    "IPrec@0.6": lambda ranked, judged: interpolated_precision(ranked, judged, 0.6),
}


@pytest.mark.parametrize("seed", range(6))
def test_measures_equal_their_brute_force_twins(seed):
    qrels, run = random_labels_and_run(seed)
    found = evaluate(run, qrels, " ".join(TWINS))
    assert list(found.per_query) == list(TWINS)
    for measure, twin in TWINS.items():
        expected = {
            query_id: twin(ranking(run.get(query_id, {})), judged)
            for query_id, judged in qrels.items()
        }
        assert found.per_query[measure] == pytest.approx(expected, abs=1e-9), measure
        assert found.mean(measure) == pytest.approx(sum(expected.values()) / 25, abs=1e-9)
    assert len(set(found.per_query["nDCG@10"].values())) > 10


def test_ties_are_broken_before_measuring():
    qrels = {"q": {"a": 1}}
    assert evaluate({"q": {"a": 1.0, "b": 1.0}}, qrels, "RR@10 R@1").means == {
        "RR@10": 0.5,
        "R@1": 0.0,
    }
    assert evaluate({"q": {"a": 1.0, "A": 1.0 + 1e-10}}, qrels, "RR@10").means == {"RR@10": 1.0}


def test_judged_queries_without_results_count_as_0():
    qrels = {"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d2": 1}, "q4": {"d9": 0}}
    found = evaluate({"q3": {"d2": 1.0}, "q1": {"d1": 5.0}, "q9": {"d1": 1.0}}, qrels, "RR@10")
    assert found.per_query == {"RR@10": {"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 0.0}}
    assert found.means == {"RR@10": 0.5}
    assert found.without_results == ["q2", "q4"]


@pytest.mark.parametrize("measure", ["Judged@10", "Compat(p=0.8)", "SetF"])
def test_every_provider_gives_a_value_to_every_judged_query(measure):
    qrels = {"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d9": 0}}
    values = evaluate({"q1": {"d1": 1.0}, "q9": {"d1": 1.0}}, qrels, measure).per_query[measure]
    assert values["q1"] > 0
    assert values == {"q1": values["q1"], "q2": 0.0, "q3": 0.0}


@pytest.mark.skipif(shutil.which("perl") is None, reason="gdeval is a Perl script")
@pytest.mark.parametrize("measure", ["ERR@20", "nDCG(dcg='exp-log2')@5"])
def test_gdeval_measures_queries_whose_ids_are_not_numbers(measure):
    found = evaluate({"q1": {"d1": 1.0}}, {"q1": {"d1": 1}}, measure)
    assert found.means == evaluate({"1": {"d1": 1.0}}, {"1": {"d1": 1}}, measure).means


def test_labels_below_0_have_no_gain():
    found = evaluate({"q": {"a": 3.0, "b": 2.0}}, {"q": {"a": -1, "b": 2}}, "nDCG@10 RR@10")
    assert found.means["nDCG@10"] == pytest.approx(1 / math.log2(3))
    assert found.means["RR@10"] == 0.5


def test_a_run_of_other_queries_is_refused():
    with pytest.raises(BadInput) as caught:
        evaluate({"q1": {"d1": 1.0}}, {"q2": {"d1": 1}}, "RR@10")
    assert caught.value.what == "the run and the labels have no query in common"
    assert caught.value.hint == "check that the run and the labels are of the same split"


# ---------------------------------------------------------------- measures of other labels


@pytest.mark.parametrize("k", [1, 5, 10, 100])
def test_holes_and_overlap_are_shares_of_the_top(k):
    qrels, run = random_labels_and_run(3)
    _, other = random_labels_and_run(4)
    evidence = Evidence(other_run=other)
    found = evaluate(run, qrels, f"Holes@{k} Judged@{k} Overlap@{k}", evidence).per_query
    assert list(found) == [f"Holes@{k}", f"Judged@{k}", f"Overlap@{k}"]
    for query_id, judged in qrels.items():
        top = ranking(run.get(query_id, {}))[:k]
        second = ranking(other.get(query_id, {}))[:k]
        held = sum(doc in judged for doc in top) / len(top) if top else 0
        shared = len(set(top) & set(second)) / len(top) if top else 0
        assert found[f"Holes@{k}"][query_id] == pytest.approx(1 - held)
        assert found[f"Judged@{k}"][query_id] == pytest.approx(held)
        assert found[f"Overlap@{k}"][query_id] == pytest.approx(shared)


def test_a_query_counts_if_its_top_contains_an_answer():
    run = {"q1": {"d1": 3.0, "d2": 2.0, "d3": 1.0}, "q2": {"d9": 1.0}, "q3": {"d1": 1.0}}
    evidence = Evidence(answers={Labels.ANSWERS: {"q1": {"d2": 1}, "q2": {}, "q4": {"d1": 1}}})
    judged = {"q1": {}, "q2": {}, "q4": {}}
    found = evaluate(run, judged, "Answers@1 Answers@2", evidence)
    assert found.per_query == {
        "Answers@1": {"q1": 0.0, "q2": 0.0, "q4": 0.0},
        "Answers@2": {"q1": 1.0, "q2": 0.0, "q4": 0.0},
    }
    assert found.without_results == ["q4"]


def test_no_passage_with_an_answer_is_0_and_not_an_error():
    evidence = Evidence(answers={Labels.PATTERNS: {}})
    assert evaluate({"q": {"d": 1.0}}, {"q": {}}, "RegexAnswers@5", evidence).means == {
        "RegexAnswers@5": 0.0
    }


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("Overlap@10", "another run", "name the other run first"),
        ("Answers@20", "a dataset's answers", "name the dataset"),
        ("RegexAnswers@20", "a dataset's answers, as regular", "name the dataset"),
    ],
)
def test_a_measure_without_its_labels_is_refused(name, words, hint):
    with pytest.raises(UsageProblem) as caught:
        parse_measures(f"RR@10 {name}")
    assert caught.value.what.startswith(f"--measures: {name} needs {words}")
    assert caught.value.hint.startswith(hint)


# ---------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("RR@10", ["RR@10"]),
        ("RR@10 nDCG@10", ["RR@10", "nDCG@10"]),
        ("RR@10,nDCG@10, R@5 ,\tAP", ["RR@10", "nDCG@10", "R@5", "AP"]),
        ("RR(rel=2)@10 nDCG(dcg='exp-log2')@5", ["RR(rel=2)@10", "nDCG(dcg='exp-log2')@5"]),
        ("nDCG(dcg='exp-log2', cutoff=5) R@5", ["nDCG(dcg='exp-log2')@5", "R@5"]),
        ("MRR@10", ["RR@10"]),
    ],
)
def test_measures_are_separated_by_spaces_and_commas_outside_parentheses(text, names):
    assert [measure.name for measure in parse_measures(text)] == names


HINT = "for instance: RR@10 nDCG@10 R@1000 Judged@10 'RR(rel=2)@10'"


@pytest.mark.parametrize(
    "name",
    ["Foo@10", "10", "RR@", "RR@ten", "RR@10@20", "RR(2)@10", "Holes", "Overlap@0", "Answers@-1",
     "Holes(rel=2)@10"],
)  # fmt: skip
def test_a_measure_that_cannot_be_read_is_refused(name):
    with pytest.raises(UsageProblem) as caught:
        parse_measures(f"nDCG@10 {name}")
    assert caught.value.what.startswith(f"--measures: cannot read {name!r} (")
    assert caught.value.hint == HINT
    assert caught.value.exit_code == 2


def test_a_measure_that_ir_measures_cannot_compute_is_refused():
    with pytest.raises(UsageProblem) as caught:
        parse_measures("alpha_nDCG@10")
    assert caught.value.what == "--measures: ir_measures cannot compute 'alpha_nDCG@10'"


@pytest.mark.parametrize("text", ["", "  ", " , "])
def test_an_empty_list_of_measures_is_refused(text):
    with pytest.raises(UsageProblem) as caught:
        parse_measures(text)
    assert (caught.value.what, caught.value.hint) == ("--measures is empty", HINT)


@pytest.mark.parametrize("name", ["R", "P", "RR(foo=1)@10", "RR@1.5", "nDCG(dcg='foo')@10"])
def test_a_parameter_that_is_missing_or_unknown_is_refused(name):
    with pytest.raises(UsageProblem, match="--measures: cannot read"):
        parse_measures(name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *((f"{name}@0", "has a cutoff that is not") for name in ("R", "P", "nDCG", "AP", "Judged")),
        ("RR@True", "has a cutoff that is not a number from 1 on"),
        ("Success@99999999999999999999", "has a number that is not below 2147483648"),
        ("Holes@2147483648", "has a number that is not below 2147483648"),
        ("RR(rel=2147483648)@10", "has a number that is not below 2147483648"),
        ("nDCG(gains={0:99999999999})@10", "has a number that is not below 2147483648"),
        ("BPM", "lacks the parameter cutoff and max_rel"),
        ("AP(rel=0)", "relevance_level should be positive"),
        ("RR" * 5000, "is too long for a measure"),
    ],
)
def test_a_number_for_which_a_provider_ends_the_process_is_refused(name, problem):
    with pytest.raises(UsageProblem) as caught:
        parse_measures(f"RR@10 {name}")
    assert problem in caught.value.what and "object at 0x" not in caught.value.what


def test_measures_that_count_are_added_up_as_in_ir_measures():
    run = {"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": 1.0}}
    qrels = {"q1": {"a": 1, "c": 1}, "q2": {"b": 1}, "q3": {"a": 1}}
    found = evaluate(run, qrels, "NumQ NumRel NumRet RR@10")
    expected = ir_measures.calc_aggregate(
        [ir_measures.NumQ, ir_measures.NumRel, ir_measures.NumRet], qrels, run
    )
    assert found.means == {str(name): value for name, value in expected.items()} | {"RR@10": 1 / 3}


def test_a_measure_that_is_not_defined_for_a_query_is_an_error_of_the_data():
    with pytest.raises(BadInput, match="Accuracy cannot be computed"):
        evaluate({"q1": {"a": 1.0}}, {"q1": {"a": 1}}, "Accuracy")


@pytest.mark.parametrize("text", ["nDCG@10 RR(rel=2@10", "nDCG@10 RR(rel=2", "nDCG@10) RR@10"])
def test_parentheses_that_do_not_match_are_refused(text):
    with pytest.raises(UsageProblem, match="--measures: cannot read"):
        parse_measures(text)


# ---------------------------------------------------------------- NIST's trec_eval

CUTOFFS = (5, 10, 15, 20, 30, 100, 200, 500, 1000)
PRINTED = {
    "map": "AP",
    "Rprec": "Rprec",
    "bpref": "Bpref",
    "recip_rank": "RR",
    "ndcg": "nDCG",
    "infAP": "infAP",
    "set_P": "SetP",
    "set_recall": "SetR",
    "set_F": "SetF",
    "set_map": "SetAP",
    "set_relative_P": "SetP(relative=True)",
    "num_ret": "NumRet",
    "num_rel": "NumRel",
    "num_rel_ret": "NumRet(rel=1)",
    **{f"iprec_at_recall_{n / 10:.2f}": f"IPrec@{n / 10}" for n in range(11)},
    **{f"success_{k}": f"Success@{k}" for k in (1, 5, 10)},
    **{f"P_{k}": f"P@{k}" for k in CUTOFFS},
    **{f"recall_{k}": f"R@{k}" for k in CUTOFFS},
    **{f"ndcg_cut_{k}": f"nDCG@{k}" for k in CUTOFFS},
    **{f"map_cut_{k}": f"AP@{k}" for k in CUTOFFS},
}
"""trec_eval's name -> ours."""


def printed_figures(path):
    """(name, query or `all`) -> the figure as trec_eval printed it."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {(name, query_id): figure for name, query_id, figure in rows}


@functools.cache
def read_check(folder):
    return {
        "qrels": read_qrels(folder / "qrels.test"),
        "run": read_run(folder / "results.test"),
        "all": printed_figures(folder / "out.test.a"),
        "each": printed_figures(folder / "out.test.aq"),
    }


@pytest.fixture
def nist(test_data):
    return read_check(test_data / "trec_eval_check")


@pytest.mark.realdata
@pytest.mark.parametrize("name", list(PRINTED))
def test_figures_are_those_that_trec_eval_prints(nist, name):
    found = evaluate(nist["run"], nist["qrels"], PRINTED[name])
    (measure,) = found.per_query
    counted = name.startswith("num_")

    def shown(value):
        return f"{value:.0f}" if counted else f"{value:.4f}"

    for query_id in ("301", "302", "303"):
        assert shown(found.per_query[measure][query_id]) == nist["each"][name, query_id]
    overall = sum(found.per_query[measure].values()) if counted else found.mean(measure)
    assert shown(overall) == nist["all"][name, "all"] == nist["each"][name, "all"]


@pytest.mark.realdata
def test_grades_of_dl19_passages_count_from_two(test_data):
    """In DL19 and DL20 a passage with label 1 is related and not relevant."""
    qrels = read_qrels(test_data / "trec_dl" / "qrels.dl19-passage.txt")
    assert len(qrels) == 43 and sum(map(len, qrels.values())) == 9260
    rng = random.Random(1)
    run = {query_id: {doc_id: rng.random() for doc_id in docs} for query_id, docs in qrels.items()}
    found = evaluate(run, qrels, "RR(rel=2)@10 R(rel=2)@100 RR@10 nDCG@10").per_query
    for query_id, judged in qrels.items():
        ranked = ranking(run[query_id])
        expected = [reciprocal_rank(ranked, judged, 10, rel=2), recall(ranked, judged, 100, rel=2),
                    reciprocal_rank(ranked, judged, 10), ndcg(ranked, judged, 10)]  # fmt: skip
        assert [values[query_id] for values in found.values()] == pytest.approx(expected)
    assert found["RR(rel=2)@10"] != found["RR@10"]
