"""What is kept of a cell, from what the real commands leave."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.study import collecting, plots, tables
from benchmarks.study.cell import Outcome, Placeholders
from tests.world import AnceInside, make_dataset


def outcome(folder, commands=(), summaries=()) -> Outcome:
    places = Placeholders(data=folder, weights=folder, work=folder, threads=1)
    return Outcome(commands=commands, summaries=summaries, places=places)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, checkpoint):
    """A run with two generations, and the diagnosis of its last checkpoint."""
    folder = tmp_path_factory.mktemp("study")
    make_dataset(folder / "data")
    program = AnceInside(folder)
    told = [
        program("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 12,
                "--negatives", 4, "-o", "bm25.jsonl", "--json"),
        program("train-segment", "bm25.jsonl", "--data", "data", "--ckpt", checkpoint, "--steps",
                3, "--total-steps", 6, "--batch-size", 8, "--log-every", 1, "-o", "run", "--json"),
        program("refresh", "run", "--depth", 12, "--negatives", 4, "--json"),
        program("train-segment", "run/generations/0001/negatives.jsonl", "--steps", 3,
                "--log-every", 1, "-o", "run", "--json"),
        program("refresh", "run", "--json"),
        program("diagnose", "--ckpt", "run/latest", "--data", "data", "--embeddings",
                "run/generations/0002/embeddings", "--run", "run", "--split", "train", "--sample",
                3, "--draws", 2, "--depth", 6, "--batch-size", 4, "--engine", "bm25s",
                "--dtype", "fp32", "-o", "report.json", "--json"),
    ]  # fmt: skip
    return SimpleNamespace(cwd=folder, told=[json.loads(call.stdout) for call in told])


def test_curves_of_a_run_and_what_the_table_and_figure_of_the_gap_make_of_them(trained):
    found = collecting.training_curves("{work}/run")(outcome(trained.cwd))
    series = found["series"]
    assert series["training"]["step"] == [1, 2, 3, 4, 5, 6]
    assert [row["checkpoint_step"] for row in series["generations"]] == [3, 6]
    assert [switch["generation"] for switch in series["switches"]] == [1]
    assert json.loads(json.dumps(found)) == found and str(trained.cwd) not in json.dumps(found)

    values = [0.1, 0.2, 0.3, 0.4]
    result = {
        "measures": {"test": {"RR@10": {"mean": 0.25}}},
        "per_query": {"test": values},
        **found,
    }
    half_more = {**result, "per_query": {"test": [value + 0.5 for value in values]}}
    alone = tables.gap_table({"gap/every-50": half_more}).splitlines()
    both = tables.gap_table({"gap/every-50": half_more, "gap/every-150": result}).splitlines()
    assert len({row.count("|") for row in (*alone, *both)}) == 1
    dev = series["generations"][-1]["value"]
    assert f"| {dev:.3f} | " in both[2] and "| 0.250 | +0.500 | 0.1" in both[2]  # p: 2 of 2^4
    assert alone[2].endswith("| 0.250 |  |  |  |") and both[3].endswith("| 0.250 |  |  |  |")
    epochs = tables.epochs_table({"epochs/once": result, "epochs/every-300": half_more})
    assert "| less once |" in epochs and "| once |" in epochs and "| gap" not in epochs
    assert "| 0.250 | +0.500 | 0.1" in epochs.splitlines()[3]
    assert tables.oldest(result) == 3  # the first generation is of step 3, and its last batch of 6
    figure = plots.gap_figure({"gap/every-50": result})
    assert figure is not None and len(figure.legends) == 1
    assert plots.gap_figure({}) is None


def test_what_the_last_steps_had_to_learn(trained):
    found = collecting.learning("{work}/run", 2)(outcome(trained.cwd))["learning"]
    lines = [json.loads(line) for line in (trained.cwd / "run" / "metrics.jsonl").open()]
    fifth, sixth = lines[4:]
    assert found["loss"] == pytest.approx((fifth["loss"] + sixth["loss"]) / 2)
    assert found["grad_norm"] == pytest.approx((fifth["grad_norm"] + sixth["grad_norm"]) / 2)
    assert 0 < found["moved"] < 1


def test_how_far_weights_moved(tmp_path):
    for name, first, second in (("a", [3.0, 0.0], [0.0, 4.0]), ("b", [3.0, 0.5], [0.0, 4.0])):
        (tmp_path / name / "2_Dense").mkdir(parents=True)
        save_file({"x": np.array(first)}, tmp_path / name / "model.safetensors")
        save_file({"x": np.array(second)}, tmp_path / name / "2_Dense/model.safetensors")
    assert collecting.moved(tmp_path / "a", tmp_path / "b") == pytest.approx(0.5 / 5)


def test_a_diagnosis_and_its_table_and_figures(trained):
    found = collecting.report_at("{work}/report.json")(outcome(trained.cwd))
    assert str(trained.cwd) not in json.dumps(found)
    report = json.loads((trained.cwd / "report.json").read_text())
    assert len(json.dumps(found)) < len(json.dumps(report))
    (row,) = [row for row in found["diagnosis"]["samplers"] if row["sampler"] == "ance"]
    assert row["test_time"] == pytest.approx(1)
    results = {"theory/every-50": found}
    assert tables.theory_table(results).count("every-50") == 6
    assert set(plots.drawn(results)) == {
        "theory-every-50-long-tail", "theory-every-50-gradient-norms",
        "theory-every-50-bias-and-variance", "theory-overlap",
    }  # fmt: skip


def test_what_commands_tell_of_their_cost(trained):
    told = collecting.figures_told(outcome(trained.cwd, summaries=trained.told))["told"]
    assert str(trained.cwd) not in json.dumps(told)
    rate = collecting.step_rate("{work}/run")(outcome(trained.cwd))["steps_per_s"]
    assert rate > 0
    results = {
        "cost/refresh": {"told": told[4:5], "load": 0.25},
        "cost/train": {"told": [], "steps_per_s": rate, "load": 0.5},
    }
    lines = tables.cost_table(results).splitlines()
    assert lines[2] == f"| training step | {1 / rate:.2f} s ({rate:.2f} steps/s) |"
    assert lines[3].startswith("| refresh | ") and "encode" in lines[3]
    assert lines[4] == "| load of the machine before, at most | 0.50 |"


def test_measures_by_label_and_values_in_the_order_of_the_ids(tmp_path):
    table = tmp_path / "test.tsv"
    rows = ["run\tquery_id\tmeasure\tvalue", "/x/test.trec\tq2\tRR@10\t0.333333",
            "/x/test.trec\tq10\tRR@10\t1.000000", "/x/test.trec\tq2\tR@5\t0.5"]  # fmt: skip
    table.write_text("\n".join(rows) + "\n")
    row = {"run": "/x/test.trec", "measures": {"RR@10": {"mean": 2 / 3}, "R@5": {"mean": 0.5}}}
    other = {"run": "/x/rerank.bm25.trec", "measures": {"RR@10": {"mean": 0.1}}}
    found = collecting.measured(
        outcome(
            tmp_path,
            [["search"], ["eval", "--per-query", str(table)], ["eval"]],
            [
                {"kind": "run"},
                {"kind": "evaluation", "runs": [row]},
                {"kind": "evaluation", "runs": [other]},
            ],
        )
    )
    assert found["per_query"] == {"test": [1.0, 0.3333]}
    assert found["measures"] == {
        "test": {"RR@10": {"mean": 0.666667}, "R@5": {"mean": 0.5}},
        "rerank": {"RR@10": {"mean": 0.1}},
    }


def test_thirds_keep_equal_offsets_together():
    offsets = {f"q{n}": offset for n, offset in enumerate([0, 0, 0, 0, 10, 20, 30, 500, 900])}
    values = {name: float(n) for n, name in enumerate(offsets)} | {"q-unknown": 100.0}
    assert collecting.thirds(values, offsets) == [
        {"from": 0, "to": 0, "queries": 4, "RR@10": 1.5},
        {"from": 1, "to": 30, "queries": 3, "RR@10": 5.0},
        {"from": 31, "to": 900, "queries": 2, "RR@10": 7.5},
    ]
    assert collecting.thirds({"q-unknown": 1.0}, offsets) == []


def test_by_answer_depth_reads_the_offsets_of_the_queries(tmp_path):
    queries = [{"_id": f"q{n}", "text": "x", "metadata": {"answer_word_offset": n}}
               for n in range(3)]  # fmt: skip
    lines = [json.dumps(query) for query in [*queries, {"_id": "q3", "text": "no metadata"}]]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines) + "\n")
    table = tmp_path / "deep.tsv"
    rows = [f"/x/deep.trec\tq{n}\tRR@10\t{n / 4}" for n in range(4)]
    table.write_text("\n".join(["run\tquery_id\tmeasure\tvalue", *rows]) + "\n")
    words = ["eval", "/x/deep.trec", "--per-query", str(table)]
    found = collecting.by_answer_depth("deep", "{data}")(outcome(tmp_path, [["search"], words]))
    (thirds,) = found.values()
    assert list(found) == ["by_depth deep"]
    assert [third["queries"] for third in thirds] == [2, 1]
    assert [third["RR@10"] for third in thirds] == [0.125, 0.5]


def test_queries_are_told_apart_by_the_document_that_they_ask_for(tmp_path):
    labels = tmp_path / "papers" / "qrels" / "test.tsv"
    labels.parent.mkdir(parents=True)
    labels.write_text("query-id\tcorpus-id\tscore\n"
                      "q3\tb\t1\nq1\ta\t1\nq1\tb\t2\nq2\tc\t1\nq2\ta\t1\nq4\ta\t1\n")  # fmt: skip
    found = collecting.documents_asked_for("papers", "{data}/papers")(outcome(tmp_path))
    assert found == {"documents papers": [1, 0, 1, 0]}  # q1 to q4; the most relevant, then by name


def test_which_queries_a_run_reaches(tmp_path):
    table = tmp_path / "test.bm25.tsv"
    table.write_text("run\tquery_id\tmeasure\tvalue\n" + "".join(
        f"bm25\t{query_id}\t{measure}\t{value}\n"
        for query_id, within in (("q2", 0.0), ("q1", 0.5))
        for measure, value in (("RR@10", 0.25), ("R@100", within))))  # fmt: skip
    assert collecting.reached("{work}/test.bm25.tsv")(outcome(tmp_path)) == {"reached": [1, 0]}


def test_numbers_are_rounded_and_paths_go():
    value = {"a": 0.123456789, "run": "/here/run", "b": [{"c": 1_234_567.8, "d": "kept"}], "n": 7}
    assert collecting.rounded(value) == {
        "a": 0.123457, "b": [{"c": 1.23457e6, "d": "kept"}], "n": 7,
    }  # fmt: skip
