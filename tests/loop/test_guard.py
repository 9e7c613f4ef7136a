"""The guard of a run: what is measured on it, what counts as a fall, and what follows from one."""

import json
import shutil

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import ComputeConfig, LoopConfig, RefreshConfig
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats.dataset import read_corpus, read_qrels, read_queries
from ance_cli.formats.plan import Plan
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop import guard
from ance_cli.loop.guard import fallen, guard_dataset
from ance_cli.loop.loop import loop
from ance_cli.loop.refresh import _point_to_best, refresh
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.texts import TextEncoder
from ance_cli.progress import Silent
from tests.world import make_dataset


class Listening(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


# ---------------------------------------------------------------- which collection


def test_dev_comes_before_test_because_the_guard_takes_part_in_a_choice(dataset):
    qrels = dataset / "qrels"
    assert guard_dataset(str(dataset)).qrels == qrels / "dev.tsv"
    assert guard_dataset(f"{dataset}:train").qrels == qrels / "train.tsv"
    (qrels / "dev.tsv").rename(qrels / "test.tsv")
    assert guard_dataset(str(dataset)).qrels == qrels / "test.tsv"
    with pytest.raises(BadInput, match=r"qrels/dev.tsv: no such split"):
        guard_dataset(f"{dataset}:dev")


def test_a_folder_whose_name_has_a_colon_is_taken_literally(dataset):
    folder = dataset.rename(dataset.with_name("data:v2"))
    assert guard_dataset(str(folder)).corpus == folder / "corpus.jsonl"
    with pytest.raises(BadInput, match="--guard /nowhere:dev: no such dataset folder"):
        guard_dataset("/nowhere:dev")


def test_the_folder_is_the_same_from_everywhere(dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    assert RefreshConfig(guard="data:dev").guard == f"{dataset}:dev"


def test_settings_that_would_have_no_effect_are_refused(tmp_path, dataset, checkpoint):
    with pytest.raises(UsageProblem, match="--guard-margin needs --guard"):
        RefreshConfig(guard_margin=0.1)
    given = {"data": dataset, "ckpt": checkpoint}
    with pytest.raises(UsageProblem, match="--on-guard stop needs --guard"):
        loop(tmp_path / "run", LoopConfig(on_guard="stop"), given=given, call=Call(dry_run=True))


# ---------------------------------------------------------------- what is measured


@pytest.fixture
def guarded(inside, dataset, spread_checkpoints):
    """A run at step 0, and another collection, whose labels are of documents that rank between."""
    make_dataset(inside.cwd / "general")
    inside("train-segment", "--data", "data", "--ckpt", spread_checkpoints["dot"], "--steps", 0,
           "--total-steps", 9, "--batch-size", 8, "--lr", "1e-1", "-o", "run", "-q")  # fmt: skip
    return inside


RULES = ["--depth", 12, "--negatives", 4, "--guard", "general"]


def stats_of(ance, number):
    path = ance.cwd / "run" / "generations" / f"{number:04d}" / "manifest.json"
    return json.loads(path.read_text())["stats"]


def reciprocal_rank(checkpoint, data, split):
    """RR@10 over the split from the vectors themselves, stored as float16."""
    encoders = {side: TextEncoder(checkpoint, side, ComputeConfig()) for side in
                ("query", "passage")}  # fmt: skip
    separator = checkpoint.settings.separator
    corpus = list(read_corpus(data / "corpus.jsonl"))
    queries, qrels = read_queries(data / "queries.jsonl"), read_qrels(data / "qrels" / split)
    xb, _ = encoders["passage"]([passage.joined(separator) for passage in corpus])
    xq, _ = encoders["query"]([queries[query_id] for query_id in qrels])
    scores = xq @ xb.astype(np.float16).astype(np.float32).T
    values = []
    for row, judged in zip(scores, qrels.values(), strict=True):
        ranked = [corpus[place].doc_id for place in np.argsort(-row, kind="stable")]
        ranks = [rank for rank, doc_id in enumerate(ranked[:10], 1) if judged.get(doc_id, 0) > 0]
        values.append(1 / ranks[0] if ranks else 0.0)
    return np.mean(values)


def test_the_measures_are_those_of_the_checkpoint_on_the_collection(guarded):
    found = json.loads(guarded("refresh", "run", *RULES, "--json").stdout)
    start = Checkpoint(guarded.cwd / "run" / "checkpoints" / "step-00000000")
    expected = reciprocal_rank(start, guarded.cwd / "general", "dev.tsv")
    assert 0 < expected < 1
    assert found["guard"]["RR@10"] == pytest.approx(expected, abs=1e-4)
    assert list(found["guard"]) == list(found["dev"]) and found["guard_fall"] == 0
    assert found["seconds"]["guard"] > 0
    generation = guarded.cwd / "run" / "generations" / "0001"
    assert not (generation / "guard-embeddings").exists(), "its vectors are not needed any more"
    kept = json.loads((generation / "guard.json").read_text())
    assert kept["RR@10"]["mean"] == pytest.approx(expected) and "difference" not in kept["RR@10"]


def test_a_fall_is_reported_with_its_numbers_and_is_not_the_best(guarded):
    guarded("refresh", "run", *RULES, "-q")
    negatives = "run/generations/0001/negatives.jsonl"
    guarded("train-segment", negatives, "--steps", 9, "-o", "run", "-q")
    shown = guarded("refresh", "run").stderr
    before, after = stats_of(guarded, 1), stats_of(guarded, 2)
    first, second = before["guard"]["RR@10"], after["guard"]["RR@10"]
    assert after["guard_fall"] == pytest.approx(first - second) and after["guard_fall"] > 0.02
    assert f"RR@10 fell from {first:.4f} (generation 1) to {second:.4f}, by more than " in shown
    kept = json.loads((guarded.cwd / "run/generations/0002/guard.json").read_text())["RR@10"]
    assert kept["difference"] == pytest.approx(second - first, abs=1e-4)
    assert f"p {kept['p_randomisation']:.4f}" in shown and "ance merge" in shown
    runs = [f"run/generations/000{number}/guard.trec" for number in (1, 2)]
    tested = json.loads(guarded("eval", *runs, "--qrels", "general/qrels/dev.tsv", "--json").stdout)
    assert tested["runs"][1]["measures"]["RR@10"] == kept
    assert (guarded.cwd / "run" / "best").resolve().name == "step-00000000"
    assert "guard fall" in guarded("status", "run").stdout


def test_a_refresh_that_was_killed_measures_only_what_is_missing(guarded, monkeypatch):
    def killed(*_, **__):
        raise RuntimeError("killed")

    evaluate = guard.evaluate_runs
    monkeypatch.setattr(guard, "evaluate_runs", killed)
    with pytest.raises(RuntimeError, match="killed"):
        refresh(guarded.cwd / "run", {"guard": str(guarded.cwd / "general"), "depth": 12,
                                      "negatives": 4})  # fmt: skip
    partial = guarded.cwd / "run" / "generations" / ".0001.partial"
    ranked = (partial / "guard.trec").read_bytes()
    monkeypatch.setattr(guard, "evaluate_runs", evaluate)
    monkeypatch.setattr(guard, "encode", killed)
    guarded("refresh", "run")
    assert (guarded.cwd / "run/generations/0001/guard.trec").read_bytes() == ranked


def test_a_damaged_ranking_is_made_again(guarded, monkeypatch):
    monkeypatch.setattr(guard, "evaluate_runs", lambda *_: 1 / 0)
    settings = {"guard": str(guarded.cwd / "general"), "depth": 12, "negatives": 4}
    with pytest.raises(ZeroDivisionError):
        refresh(guarded.cwd / "run", settings)
    monkeypatch.undo()
    partial = guarded.cwd / "run" / "generations" / ".0001.partial"
    whole = (partial / "guard.trec").read_bytes()
    (partial / "guard.trec").write_text("q24 Q0 d1 1 1.0 ance\n")
    assert "guard.trec: was damaged" in guarded("refresh", "run").stderr
    assert (guarded.cwd / "run/generations/0001/guard.trec").read_bytes() == whole


def test_a_collection_that_changed_is_not_compared_with_itself(guarded):
    guarded("refresh", "run", *RULES, "-q")
    negatives = "run/generations/0001/negatives.jsonl"
    guarded("train-segment", negatives, "--steps", 1, "-o", "run", "-q")
    (guarded.cwd / "general/qrels/dev.tsv").write_text("q24\td24\t1\n")
    with pytest.raises(Mismatch, match="its files have changed since generation 1"):
        refresh(guarded.cwd / "run")
    guarded("refresh", "run", "--force", "-q")
    assert stats_of(guarded, 2)["guard_fall"] == 0, "it is a start of its own"


def test_a_guard_that_cannot_be_measured_is_refused_before_anything_is_encoded(guarded):
    (guarded.cwd / "general/queries.jsonl").unlink()
    assert "this command needs queries" in guarded("refresh", "run", *RULES, code=2).stderr
    shutil.rmtree(guarded.cwd / "general")
    found = guarded("refresh", "run", *RULES, code=3)
    assert "general: no such dataset folder" in found.stderr
    assert not (guarded.cwd / "run" / "refresh.json").exists()


# ---------------------------------------------------------------- what follows from a fall


@pytest.fixture
def measured(tmp_path, dataset):
    """Three generations, better and better on dev; the third has fallen by 0.05 on the guard."""
    run = RunFolder(tmp_path / "run")
    config = RefreshConfig(guard=str(dataset))
    inputs = guard.guard_inputs(config)
    shaping = {"dev_split": "dev", "measures": config.measures, "dev_depth": 100}
    for number, (value, fall) in enumerate([(0.1, 0.0), (0.2, 0.02), (0.3, 0.05)], start=1):
        plan = Plan("generation", run.generation(number).path, shaping, inputs)
        plan.open_partial()
        stats = {"checkpoint_step": number, "dev": {"RR@10": value},
                 "guard": {"RR@10": 0.5 - fall}, "guard_fall": fall}  # fmt: skip
        plan.publish_folder({}, stats)
        run.checkpoint(number).path.mkdir(parents=True)
        run.publish(number, number, run.generation(number).path)
    return run


@pytest.mark.parametrize(("margin", "best"), [(0.0, 1), (0.02, 2), (0.05, 3)])
def test_the_best_is_within_the_margin(measured, dataset, margin, best):
    _point_to_best(measured, RefreshConfig(guard=str(dataset), guard_margin=margin))
    assert measured.best.resolve() == measured.checkpoint(best).path
    _point_to_best(measured, RefreshConfig())
    assert measured.best.resolve() == measured.checkpoint(3).path


def test_generations_of_another_guard_are_not_the_best(measured, dataset):
    (dataset / "qrels" / "dev.tsv").write_text("q24\td24\t1\n")
    _point_to_best(measured, RefreshConfig(guard=str(dataset)))
    assert not measured.best.exists()


@pytest.mark.parametrize(("margin", "stops"), [(0.02, True), (0.05, False)])
def test_a_loop_stops_when_the_published_generation_has_fallen(measured, margin, stops):
    measured.write_settings("refresh.json", {"guard": "/data/nq", "guard_margin": margin})
    reason = fallen(measured)
    assert bool(reason) is stops
    if stops:
        assert reason == (
            "generation 3 is 0.0500 below the start on the guard, more than --guard-margin 0.02"
        )
        measured.best.symlink_to("checkpoints")
        assert fallen(measured) == f"{reason}; the best checkpoint within it is {measured.best}"


def test_without_a_generation_nothing_has_fallen(tmp_path):
    assert fallen(RunFolder(tmp_path)) is None
