"""The page of a run folder in any state: finished, begun or damaged."""

import json
import sys

import pytest

from ance_cli.call import Call
from ance_cli.errors import BadInput, Mismatch, ResourceExhausted, UsageProblem
from ance_cli.formats.run_folder import REFRESHER
from ance_cli.report.facts import Stretch, stretches_of
from ance_cli.report.report import report
from tests.html import Page
from tests.loop.test_status import generation, ledger, log_line, looping, point

AUDIT = {
    "pairs": 7, "negatives": 28, "shares": {"ann": 1.0}, "by_source": {"ann": 28},
    "removed_from_candidates": {"ann": {"positives": 3}}, "negatives_missing": 0,
    "negative_scores": {"p5": 1.0, "p25": 2.0, "p50": 3.0, "p75": 4.0, "p95": 5.5},
    "positive_scores": None, "overlap_with_earlier": 0.125, "churn_against_earlier": 0.875,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run that was only made."""
    folder = tmp_path / "run"
    for name in ("checkpoints", "state", "generations", "lease"):
        (folder / name).mkdir(parents=True)
    made = {"identity": {"dataset": "abc", "lr": 0.00003}, "start_checkpoint": "/models/bert"}
    (folder / "run.json").write_text(json.dumps(made))
    return folder


def page_of(run, **more):
    output = run.parent / "report.html"
    summary = report(run, output, **more)
    return Page(output.read_text()), summary


def test_a_run_that_only_was_made(run):
    page, summary = page_of(run)
    assert summary["missing"] == [] and summary["num_generations"] == 0
    assert "prepared" in page.text["overview"] and "/models/bert" in page.text["overview"]
    assert "/models/bert" in page.text["configuration"] and "0.00003" in page.text["configuration"]
    for section, nothing in {
        "lineage": "The run has no refreshes and no training yet.",
        "measures": "No generation was measured on a dev split.",
        "training": "The training log is empty.",
        "staleness": "The run has no generation yet.",
        "audit": "No negatives were mined.",
        "cost": "The run has no generation yet.",
        "cases": "There are no two rankings of the dev queries to compare.",
        "failures": "No event reports a failure.",
    }.items():
        assert nothing in page.text[section]
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_a_run_without_refreshes(run):
    segment = {"segment": 1, "start_step": 0, "steps": 40, "input": "x", "negatives": "bm25.jsonl",
               "generation": None, "checkpoint_step": 0}  # fmt: skip
    ledger(run / "segments.jsonl", segment)
    ledger(run / "metrics.jsonl", *[log_line(step, 1.0, grad_norm=2.0) for step in (10, 20)])
    page, _ = page_of(run)
    assert page.tables["Negatives in the order of training"][1:] == [
        ["bm25.jsonl", "0", "20", "0", "-", "-"]
    ]
    assert sum(tag == "svg" for tag, _ in page.elements) == 2  # loss, gradient norm
    assert "all" in page.text["training"] and "bottom" not in page.text["training"]


def test_an_asynchronous_loop_while_it_runs(run):
    looping(run, "async", published=20)
    generation(run, 1, 0, age=0, dev={"RR@10": 0.25}, audit=AUDIT)
    generation(run, 2, 20, age=13, probe_overlap=0.6, consumed=1.5, dev={"RR@10": 0.5},
               audit=AUDIT, seconds={"encode": 20.5, "mine": 9.5, "all": 30.0})  # fmt: skip
    ledger(run / "segments.jsonl", {"segment": 1, "start_step": 0, "steps": 99, "input": "follow"})
    ledger(run / "switches.jsonl", {"step": 0, "generation": 1}, {"step": 35, "generation": 2})
    ledger(run / "metrics.jsonl", *[log_line(s, 2.0, negatives_age=s) for s in range(5, 61, 5)])
    ledger(
        run / "events.jsonl",
        {"time": "2026-11-20T09:00:00+00:00", "who": REFRESHER, "what": "drift measured",
         "generation": 1, "checkpoint_step": 20, "overlap": 0.4321, "refresh": True},
        {"time": "2026-11-20T09:01:00+00:00", "who": "supervisor", "what": "inferencer died",
         "code": 9},
    )  # fmt: skip
    page, summary = page_of(run)
    assert summary["missing"] == [] and summary["num_generations"] == 2
    assert page.tables["Negatives in the order of training"][1:] == [
        ["generation 1", "0", "35", "0", "0", "35"],
        ["generation 2", "35", "60", "20", "15", "40"],
    ]
    assert page.tables["Each generation compared with the generation before; ages in steps"][2] == [
        "2", "20", "13", "1.5", "0.6", "0.125", "0.875",
    ]  # fmt: skip
    assert page.tables["Drift measured while training"][1] == [
        "2026-11-20 09:00:00", "20", "1", "0.4321", "yes",
    ]  # fmt: skip
    assert page.tables["Means with 95 % intervals"][1:] == [
        ["run", "1", "0", "0.2500"], ["run", "2 (best)", "20", "0.5000"],
    ]  # fmt: skip
    cost = page.tables["Seconds of each stage, and the size at publication"]
    assert cost[0] == ["generation", "step", "all s", "encode s", "mine s", "size"]
    assert cost[2][:5] == ["2", "20", "30", "20.5", "9.5"]
    assert ["removed from candidates: ann: positives", "3", "3"] in page.tables[
        "Counts and shares by generation"
    ]
    assert ["negative scores", "2", "1", "2", "3", "4", "5.5"] in page.tables[
        "Ranks, scores and margins of the negatives"
    ]
    assert "refresh daemon died" in page.text["failures"] and "code 9" in page.text["failures"]
    assert sum(tag == "svg" for tag, _ in page.elements) == 7


def test_the_guard_is_next_to_the_dev_measures(run):
    settings = {"measures": "RR@10", "guard": "/data/nq", "guard_margin": 0.05}
    (run / "refresh.json").write_text(json.dumps(settings))
    generation(run, 1, 0, dev={"RR@10": 0.25}, guard={"RR@10": 0.75}, guard_fall=0.0)
    generation(run, 2, 20, dev={"RR@10": 0.5}, guard={"RR@10": 0.625}, guard_fall=0.125)
    kept = {"RR@10": {"mean": 0.625, "low": 0.5, "high": 0.7, "difference": -0.125, "p_t": 0.1}}
    (run / "generations" / "0002" / "guard.json").write_text(json.dumps(kept))
    page, summary = page_of(run)
    assert summary["missing"] == []
    assert page.tables["Means on the guard /data/nq with 95 % intervals"] == [
        ["generation", "step", "RR@10", "fall (at most 0.05)"],
        ["1", "0", "0.7500", "0.0000"],
        ["2", "20", "0.6250 (0.5000 to 0.7000)", "0.1250"],
    ]
    for words in ("RR@10 on the dev split by checkpoint step", "RR@10 on the guard by checkpoint"):
        assert words in page.text["measures"]


def test_latest_and_best_are_explained(run):
    generation(run, 1, 20, dev={"RR@10": 0.5})
    point(run, "latest", 40)
    point(run, "best", 20)
    overview = page_of(run)[0].text["overview"]
    assert f"{run}/latest, step 40: the newest weights, where training continues" in overview
    assert f"{run}/best, step 20: deploy this one; its RR@10 on dev is the highest" in overview


def test_what_is_damaged_is_named_and_the_rest_is_shown(run):
    generation(run, 1, 0, dev={"RR@10": 0.25})
    generation(run, 2, 20, dev={"RR@10": 0.5})
    (run / "generations" / "0001" / "manifest.json").write_text('{"stats": {"check')
    (run / "generations" / "0002" / "dev.json").write_text("[]")
    (run / "refresh.json").write_text("")
    lines = [json.dumps(log_line(10, 1.0)), "{half", json.dumps(log_line(20, 1.0)), '{"cut": ']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    page, summary = page_of(run)
    listed = "\n".join(summary["missing"])
    for what in (
        "0001/manifest.json: has no facts about generation 1",
        "0002/dev.json: expected a JSON object, found array",
        "refresh.json: not valid JSON (",
        "metrics.jsonl:2: not valid JSON (",
    ):
        assert what in listed
    assert len(summary["missing"]) == 4
    assert all(what in page.text[""] for what in summary["missing"])  # before the first section
    assert page.tables["Means with 95 % intervals"][1:] == [["run", "2 (best)", "20", "0.5000"]]
    (run / "run.json").write_text("no")
    assert any("run.json" in what for what in page_of(run)[1]["missing"])


def test_a_dataset_that_is_gone_is_named(run):
    data = {"corpus": "/gone/corpus.jsonl", "queries": "/gone/q.jsonl", "qrels": "/gone/t.tsv",
            "split": "train"}  # fmt: skip
    (run / "run.json").write_text(json.dumps({"identity": {"dataset": "abc"}, "data": data}))
    (run / "refresh.json").write_text(json.dumps({"dev_split": "dev", "measures": "RR@10"}))
    for number in (1, 2):
        generation(run, number, 20 * number, dev={"RR@10": 0.5})
        (run / "generations" / f"{number:04d}" / "dev.trec").write_text("q Q0 d 1 1.0 x\n")
    page, summary = page_of(run)
    assert summary["missing"] == ["/gone/corpus.jsonl: no such file"]
    assert "no two rankings" in page.text["cases"]
    assert page_of(run, cases=0)[1]["missing"] == []  # the dataset is not needed


def test_other_runs_and_whether_they_compare(run, tmp_path):
    """Runs of the same name are shown by their paths; a run on other data is marked."""
    (run / "refresh.json").write_text(json.dumps({"dev_split": "dev", "dev_depth": 100}))
    generation(run, 1, 0, dev={"RR@10": 0.25, "R@100": 0.75})
    other = tmp_path / "others" / "run"
    (other / "generations").mkdir(parents=True)
    (other / "run.json").write_text('{"identity": {"dataset": "another"}}')
    generation(other, 1, 40, dev={"RR@10": 0.375})
    page, _ = page_of(run, against=[other])
    assert page.tables["Means with 95 % intervals"][1:] == [
        [str(run), "1 (best)", "0", "0.2500", "0.7500"],
        [f"{other} (other data, split or depth)", "1 (best)", "40", "0.3750", "-"],
    ]


def test_a_ranking_and_nothing_to_test_it_against(run, tmp_path):
    (tmp_path / "bm25.trec").write_text("q Q0 d 1 1.0 x\n")
    _, summary = page_of(run, against=[tmp_path / "bm25.trec"])
    assert summary["missing"] == [
        f"{run}: no generation has a ranking of the dev queries to test against"
    ]


def test_no_run_no_page(tmp_path):
    with pytest.raises(BadInput, match="is not a run folder"):
        report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_only_a_report_is_replaced(run, tmp_path):
    page_of(run)
    page_of(run)
    other = tmp_path / "notes.html"
    other.write_text("<!doctype html><p>mine</p>")
    with pytest.raises(Mismatch, match="exists and is not a report"):
        report(run, other)
    assert "mine" in other.read_text()
    with pytest.raises(Mismatch, match="exists and is not a report"):  # it is the user's
        report(run, other, call=Call(force=True))
    assert "mine" in other.read_text()
    with pytest.raises(UsageProblem, match="is a folder"):
        report(run, tmp_path, call=Call(force=True))


def test_a_write_that_fails_leaves_the_earlier_report(run, monkeypatch):
    page_of(run)
    before = (run.parent / "report.html").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(ResourceExhausted, match="Input/output error"):
        page_of(run)
    assert (run.parent / "report.html").read_bytes() == before
    assert not list(run.parent.glob(".report*"))


def test_without_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageProblem) as caught:
        report(run, run.parent / "report.html")
    assert caught.value.hint == "pip install 'ance-cli[figures]'"
    assert not (run.parent / "report.html").exists()


def test_stretches():
    """A file, then generations by hand, then the loop: each until the next begins."""
    segments = [
        {"segment": 1, "start_step": 0, "input": "x", "negatives": "a.jsonl", "generation": None,
         "checkpoint_step": 0},
        {"finished": 1},
        {"segment": 2, "start_step": 10, "input": "y", "negatives": "g", "generation": 1},
        {"segment": 3, "start_step": 20, "input": "batch/all", "negatives": None,
         "generation": None, "checkpoint_step": None},
        {"segment": 4, "start_step": 30, "input": "follow", "negatives": None, "generation": None},
    ]  # fmt: skip
    switches = [{"step": 10, "generation": 1}, {"step": 37, "generation": 2}]
    found = stretches_of(segments, switches, {1: 10, 2: 30}, last_step=42)
    assert found == [
        Stretch(0, 10, "a.jsonl", None, 0),
        Stretch(10, 20, "generation 1", 1, 10),
        Stretch(20, 30, "batch/all", None, None),
        Stretch(30, 37, "generation 1", 1, 10),
        Stretch(37, 42, "generation 2", 2, 30),
    ]
    assert [each.ages for each in found] == [None, (0, 10), None, (20, 27), (7, 12)]
    assert stretches_of(segments[:1], [], {}, last_step=0) == []
