"""Runs in TREC's six columns, ranked as trec_eval ranks them."""

import gzip
import io
import random
import struct

import pytest

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.trec import in_trec_order, read_run, write_hits


def as_float(score):
    """A score as C's float holds it."""
    return struct.unpack("f", struct.pack("f", score))[0]


def test_ties_are_broken_by_document_id_descending():
    scores = {"d1": 1.0, "d3": 1.0, "d10": 1.0, "d2": 2.0}
    assert [doc_id for doc_id, _ in in_trec_order(scores)] == ["d2", "d3", "d10", "d1"]


def test_scores_that_32_bits_cannot_tell_apart_are_ties():
    assert as_float(1.0 + 1e-9) == as_float(1.0)
    scores = {"a": 1.0 + 1e-9, "b": 1.0, "c": 1.0 - 1e-6}
    assert [doc_id for doc_id, _ in in_trec_order(scores)] == ["b", "a", "c"]
    assert dict(in_trec_order(scores)) == scores, "the scores themselves stay as they are"


def test_the_order_is_trec_evals_on_random_runs_with_ties():
    draw = random.Random(3)
    for _ in range(50):
        scores = {
            f"d{draw.randrange(1000)}": draw.choice([0.1, 0.1 + 1e-10, -3.0, draw.random()])
            for _ in range(30)
        }
        places = list(scores)
        for i in range(len(places)):  # insertion sort, by the two rules as trec_eval states them
            for j in range(i, 0, -1):
                one, two = places[j - 1], places[j]
                ahead = as_float(scores[two]) > as_float(scores[one])
                tied = as_float(scores[two]) == as_float(scores[one])
                if ahead or (tied and two > one):
                    places[j - 1], places[j] = two, one
        assert [doc_id for doc_id, _ in in_trec_order(scores)] == places


def test_hits_are_written_ranked():
    handle = io.BytesIO()
    write_hits(handle, "q1", [("d1", 0.25), ("d2", -1.0), ("d3", 12.5), ("d4", 0.25)], "mine")
    assert handle.getvalue().decode() == (
        "q1 Q0 d3 1 12.500000 mine\n"
        "q1 Q0 d4 2 0.250000 mine\n"
        "q1 Q0 d1 3 0.250000 mine\n"
        "q1 Q0 d2 4 -1.000000 mine\n"
    )


def test_ranks_follow_the_scores_as_they_are_printed():
    handle = io.BytesIO()
    write_hits(handle, "q1", [("d1", 0.12345649), ("d2", 0.12345651), ("d3", 0.12345650001)], "t")
    printed = [line.split()[2:5] for line in handle.getvalue().decode().splitlines()]
    assert printed == [["d3", "1", "0.123457"], ["d2", "2", "0.123457"], ["d1", "3", "0.123456"]]


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_is_read_whatever_its_order(tmp_path, name):
    text = b"q1 Q0 d1 9 0.5 x\nq2\tQ0\td1\t1\t1e3\tx\nq1  Q0 d2 1 -2 x\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read_run(path) == {"q1": {"d1": 0.5, "d2": -2.0}, "q2": {"d1": 1000.0}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "q1 Q0 d2 1 0.5",
            "expected TREC's 6 columns (query_id Q0 doc_id rank score tag), found 5",
        ),
        (
            "q1 Q0 d2 1 0.5 my tag",
            "expected TREC's 6 columns (query_id Q0 doc_id rank score tag), found 7",
        ),
        ("q1 Q0 d2 1 high x", "the score should be a number, found 'high'"),
        ("q1 Q0 d2 1 nan x", "the score is nan, expected a finite number"),
        ("q1 Q0 d2 1 -inf x", "the score is -inf, expected a finite number"),
        ("q1 Q0 d1 2 0.4 x", "document 'd1' occurs twice for query 'q1'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, reason):
    path = tmp_path / "run.trec"
    path.write_text(f"q1 Q0 d1 1 0.5 x\n{line}\nq2 Q0 d1 1 0.5 x\n")
    with pytest.raises(BadInput) as caught:
        read_run(path)
    assert caught.value.what == f"{path}:2: {reason}"
    skipped = SkippedLines()
    assert read_run(path, skipped) == {"q1": {"d1": 0.5}, "q2": {"d1": 0.5}}
    assert list(skipped.reasons) == [f"{path}:2: {reason}"]


def test_a_run_without_a_hit_is_refused(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("")
    with pytest.raises(BadInput) as caught:
        read_run(path)
    assert caught.value.what == f"{path}: the file has no hits"
