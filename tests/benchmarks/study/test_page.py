"""Tables, figures and comparisons from lines of results that can be checked by eye."""

from __future__ import annotations

import orjson
import pytest

from ance_cli.evaluation.significance import paired_test
from benchmarks.study import comparing, page, plots, tables
from benchmarks.study.__main__ import main
from benchmarks.study.grid import grid


def line(values, rerank=None, seed=None, label="test", measure="RR@10", **more):
    """A result whose queries have these values of one measure."""
    mean = sum(values) / len(values)
    measures = {label: {m: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
                        for m in (measure, "nDCG@10", "R@100", "Answers@100")}}  # fmt: skip
    if rerank is not None:
        measures["rerank"] = {"RR@10": {"mean": rerank, "low": rerank, "high": rerank}}
    machine = {"cpu": "Abacus", "cores": 2, "gpus": []}
    return {"measures": measures, "per_query": {label: values}, "seed": seed, "machine": machine,
            "date": "2026-11-20T10:00:00+00:00", **more}  # fmt: skip


ANCE = [0.9, 1.0, 0.8, 1.0, 0.7, 0.9, 1.0, 0.6]
LESS = [0.5, 0.9, 0.2, 0.9, 0.3, 0.5, 0.4, 0.5]
ARMS = {
    "medquad/bm25": line([0.4] * 8),
    "table1/bm25-ance/seed-42": line(
        ANCE, 0.8601, 42, learning={"loss": 0.25, "grad_norm": 3, "moved": 0.012}
    ),
    "table1/bm25-ance/seed-43": line([value - 0.1 for value in ANCE], 0.7601, 43),
    "table1/bm25/seed-42": line(LESS, 0.9, 42),
    "table1/rand/seed-42": line(ANCE, 0.8, 42),
}


def test_arms_meet_over_the_seeds_that_both_have():
    ance, bm25 = (comparing.by_seed(ARMS, f"table1/{arm}") for arm in ("bm25-ance", "bm25"))
    assert list(ance) == [42, 43] and list(bm25) == [42]
    sparse = {0: ARMS["medquad/bm25"]}
    found = comparing.against(ance, {"bm25": bm25, "sparse": sparse, "nobody": {44: line(LESS)}})
    assert set(found) == {"bm25", "sparse"}
    by_hand = sum(less - ance for less, ance in zip(LESS, ANCE, strict=True)) / 8
    assert found["bm25"].value == pytest.approx(by_hand)
    assert found["bm25"].p == paired_test(ANCE, LESS).p_randomisation
    means = [value - 0.05 for value in ANCE]  # of both seeds
    assert found["sparse"].value == pytest.approx(0.4 - sum(means) / 8)
    # Holm by hand, of two: the smaller p doubled, the other at least that
    low, high = sorted(found.values(), key=lambda difference: difference.p)
    assert low.corrected == pytest.approx(min(1, 2 * low.p))
    assert high.corrected == pytest.approx(max(low.corrected, high.p))


def test_queries_of_one_group_change_their_signs_together():
    first, second = [0.5] * 8, [0.9, 0.8, 0.7, 0.9, 0.4, 0.3, 0.4, 0.2]
    pairs = {"one": (first, second)}
    apart = comparing.family(pairs, {"one": list(range(8))})["one"]
    assert apart == comparing.family(pairs)["one"]
    halves = comparing.family(pairs, {"one": [0] * 4 + [1] * 4})["one"]
    assert halves.value == pytest.approx(apart.value) == pytest.approx(0.075)
    # of four ways to flip two sums, 1.3 and -0.7, two are as far from 0 as 0.6 is, two farther
    assert halves.p == 1.0 > apart.p


def test_reranking_is_held_against_retrieval_where_there_is_something_to_rerank():
    run = line([1.0, 0.5, 0.5, 0.4], rerank=0.375)
    assert tables.gaps([run, line([1.0, 0.0])]) == [pytest.approx(0.375 - 0.6)]
    # of the first and third query, of which reranking has all there is: 1.5 of 2
    assert tables.gaps([run], [1, 0, 1, 0]) == [pytest.approx(0.75 - 0.75)]
    table = tables.arms_table({**ARMS, "medquad/bm25": line([0.4] * 8, reached=[1] * 4 + [0] * 4)})
    row = next(row for row in table.splitlines() if row.startswith("| BM25 Neg"))
    assert row.split(" | ")[7] == f"{0.9 / 0.5 - sum(LESS[:4]) / 4:+.3f}"


def test_any_two_arms_are_compared_on_the_command_line(tmp_path, capsys):
    cells = grid()
    results = tmp_path / "results.jsonl"
    answers = {"openqa/bm25": line(LESS, measure="Answers@20")}
    with results.open("wb") as handle:
        for name, result in (ARMS | answers).items():
            known = {"cell": name, "recipe": cells[name].recipe}
            handle.write(orjson.dumps(result | known) + b"\n")
    there = ["--results", str(results)]
    arms = ["table1/bm25", "table1/bm25-ance", "medquad/bm25", "table1/bm25-ance/seed-43"]
    assert main(["compare", *arms, *there]) == 0
    ance, sparse, apart = capsys.readouterr().out.splitlines()
    test = paired_test(LESS, ANCE)
    assert ance.startswith(f"table1/bm25-ance less table1/bm25: {test.difference:+.4f}, p ")
    assert f", p {test.p_randomisation:.4f}, " in ance and ance.endswith(", seeds 42")
    assert sparse.endswith(", seeds 42")
    assert apart == "no seed to compare with table1/bm25: table1/bm25-ance/seed-43"
    assert main(["compare", "medquad/bm25", "table1/bm25-ance", *there]) == 0
    assert capsys.readouterr().out.rstrip().endswith(", seeds 42, 43")
    # the reference's own results are no test of the family
    assert main(["compare", *arms[1::-1], "table1/bm25-ance/seed-42", *there]) == 0
    bm25, itself = capsys.readouterr().out.splitlines()
    assert f"after Holm {test.p_randomisation:.4f}" in bm25 and "seed-42" in itself
    assert main(["compare", "table1/bm25", *there]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert main(["compare", "table1/bm25", "openqa/bm25", *there]) == 2
    assert "other queries or another measure" in capsys.readouterr().err
    assert main(["compare", "table1/bm25", "documents/maxp", *there]) == 2
    assert "no test run of documents/maxp" in capsys.readouterr().err


def test_the_table_of_arms():
    rows = [row.strip("| ").split(" | ") for row in tables.arms_table(ARMS).splitlines()]
    by_name = {row[0]: row for row in rows[2:]}
    assert list(by_name) == ["BM25", "Rand", "BM25 Neg", "BM25 -> ANCE"]
    # seeds 0.8625 and 0.7625: their mean and standard deviation; reranking is 0.0024 less in both
    assert by_name["BM25 -> ANCE"][1:7] == [
        "2", "0.812 ± 0.071", "0.812 ± 0.071", "0.812 ± 0.071", "0.810 ± 0.071", "-0.002 ± 0.000",
    ]  # fmt: skip
    assert by_name["BM25 -> ANCE"][8:11] == ["0.250", "3", "1.20%"], (
        "of the seed whose log is there"
    )
    assert by_name["BM25 Neg"][6] == "+0.375"
    assert by_name["Rand"][7:] == ["", "", "", "", "+0.000", "1.0000", "1.0000"]


def test_documents_answers_and_methods_are_tested_too():
    thirds = [{"from": 0, "to": 9, "queries": 4, "RR@10": 0.5}]
    documents = {
        "documents/firstp": line(LESS, label="medquad_doc", **{"by_depth medquad_doc": thirds}),
        "documents/maxp": line(
            ANCE,
            label="medquad_doc",
            **{"by_depth medquad_doc": thirds, "documents medquad_doc": [0] * 8},
        ),
    }
    first, second = tables.documents_table(documents).splitlines()[2:]
    assert "| FirstP |" in first and "0.500 (words 0 to 9, 4)" in first
    assert "| MaxP |" in second and "| +0.338 | 1.0000 | 1.0000 |" in second, "of one document"
    unseen = {
        "documents/firstp": line(LESS, label="covidqa"),
        "documents/maxp": line(ANCE, label="covidqa-whole",
                               **{"documents covidqa-whole": [*range(8)]}),
    }  # fmt: skip
    first, whole = tables.documents_table(unseen).splitlines()[2:]
    assert "| MaxP, 64 segments |" in whole and "| +0.338 |" in whole, "against the same papers"
    openqa = {
        "openqa/bm25": line(LESS, measure="Answers@20"),
        "openqa/fused": line(ANCE, measure="Answers@20"),
    }
    assert "| +0.338 |" in tables.openqa_table(openqa).splitlines()[3]
    later = {**ARMS, "later/simans": line(LESS, seed=42)}
    uniform, simans = tables.later_table(later).splitlines()[2:]
    assert uniform.startswith("| uniform ANCE | 0.863 |"), "of the seed that the methods have"
    assert "| -0.337 |" in simans or "| -0.338 |" in simans
    assert set(plots.drawn({**later, **documents, **openqa})) == {
        "arms", "documents", "openqa", "later",
    }  # fmt: skip


def test_the_page_says_what_is_missing_and_is_the_same_each_time(tmp_path):
    cells = grid()
    names = page.write(cells, ARMS, tmp_path)
    assert names == ["arms.svg", "tables.md"]
    first = {name: (tmp_path / name).read_bytes() for name in names}
    page.write(cells, ARMS, tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in names}
    text = (tmp_path / "tables.md").read_text()
    assert "2 cores of Abacus, no GPU (5 cells); 2026-11-20." in text
    assert "![arms](arms.svg)" in text
    for name in cells:
        assert (f"`{name}`" in text) == (name not in ARMS), name
    assert text.count("Nothing to show yet.") == 6  # there are arms, and with them uniform ANCE
