"""The queries on which two runs differ most."""

from ance_cli.evaluation.cases import Shown, documents_of, wins_and_losses


def test_the_largest_differences_come_first_and_ties_keep_their_order():
    first = {"q1": 0.5, "q2": 0.0, "q3": 1.0, "q4": 0.25, "q5": 0.5, "q6": 0.0}
    second = {"q1": 1.0, "q2": 1.0, "q3": 0.0, "q4": 0.25, "q5": 0.0, "q6": 0.5}
    assert wins_and_losses(first, second, 9) == (["q2", "q1", "q6"], ["q3", "q5"])
    assert wins_and_losses(first, second, 1) == (["q2"], ["q3"])
    assert wins_and_losses(second, first, 2) == (["q3", "q5"], ["q2", "q1"])
    assert wins_and_losses(first, first, 9) == ([], [])


def test_the_top_of_both_runs_and_the_relevant_documents_are_shown():
    first = {f"a{n}": 10.0 - n for n in range(5)} | {"both": 20.0, "deep": 0.0}
    second = {"b0": 3.0, "both": 2.0, "b2": 1.0, "b3": 0.5}
    labels = {"deep": 1, "never": 2, "a4": 1, "x": 1, "b0": 0}
    assert documents_of(first, second, labels) == [
        Shown("b0", 0, None, 1),
        Shown("both", None, 1, 2),
        Shown("b2", None, None, 3),
        Shown("a0", None, 2, None),
        Shown("a1", None, 3, None),
        Shown("a4", 1, 6, None),
        Shown("deep", 1, 7, None),
        Shown("never", 2, None, None),
    ]


def test_a_query_that_is_missing_from_a_run():
    assert documents_of({}, {"d": 1.0}, {}) == [Shown("d", None, None, 1)]
