"""`ance eval --mteb` on tasks made of local data."""

import json

import pytest

pytest.importorskip("mteb")

from ance_cli.evaluation.mteb_tasks import MtebEncoder
from tests.mteb_task import add_task, retrieval_task
from tests.world import make_dataset


@pytest.fixture
def world(inside, monkeypatch):
    """Two tasks: one of the dev queries, one of the train queries of the same collection."""
    make_dataset(inside.cwd / "data", copies=False)
    for name, split in (("DevRetrieval", "dev"), ("TrainRetrieval", "train")):
        add_task(monkeypatch, retrieval_task(inside.cwd / "data", name, split))
    return inside


def measured(world, *arguments, **more):
    return json.loads(world("eval", *arguments, "--json", **more).stdout)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_scores_are_those_of_our_own_search(world, spread_checkpoints, similarity):
    ckpt = ["--ckpt", spread_checkpoints[similarity], "--dtype", "fp32"]
    found = measured(world, *ckpt, "--mteb", "DevRetrieval", "--mteb", "TrainRetrieval")
    world("encode", *ckpt, "--data", "data", "--output-dtype", "float32", "-o", "emb")
    expected = []
    for split in ("dev", "train"):
        data = ["--data", "data", "--split", split]
        world("search", *ckpt, "--embeddings", "emb", *data, "--depth", 64, "-o", f"{split}.trec")
        run = measured(world, f"{split}.trec", *data, "--measures", "nDCG@10")["runs"][0]
        expected.append(run["measures"]["nDCG@10"]["mean"])
    assert min(expected) > 0 and max(expected) < 1
    assert [row["measure"] for row in found["tasks"]] == ["ndcg_at_10"] * 2
    assert [row["score"] for row in found["tasks"]] == pytest.approx(expected, abs=1e-4)
    assert found["mean"] == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_what_is_shown_and_what_is_kept(world, spread_checkpoints):
    import mteb

    command = ["eval", "--ckpt", spread_checkpoints["dot"], "--mteb", "DevRetrieval", "--mteb",
               "TrainRetrieval", "-o", "results.json"]  # fmt: skip
    shown = world(*command)
    kept = json.loads((world.cwd / "results.json").read_text())
    for row in kept["tasks"]:
        assert f"{row['task']}: ndcg_at_10 {row['score']:.4f}" in shown.stderr
    assert "mean of 2" in shown.stdout and f"{kept['mean']:.4f}" in shown.stdout
    manifest = json.loads((world.cwd / "results.json.manifest.json").read_text())
    assert manifest["inputs"].keys() == {"query_tower", "passage_tower"}
    assert manifest["shaped_by"]["mteb"] == mteb.__version__ == kept["mteb"]
    assert [row["revision"] for row in manifest["stats"]["tasks"]] == ["NA", "NA"]
    assert "mean of 2" in world(*command).stdout, "an output that is up to date is shown again"
    found = world(*command, "--mteb", "NanoNQRetrieval", code=4)
    assert "results.json: exists with other settings: tasks" in found.stderr


def test_finished_tasks_are_kept_when_the_data_of_another_cannot_be_loaded(
    world, spread_checkpoints, monkeypatch
):
    class Gone(retrieval_task(world.cwd / "data", "GoneRetrieval")):
        def load_data(self, **_):
            raise ConnectionError("Couldn't reach the hub. And more")

    add_task(monkeypatch, Gone)
    ckpt = ["--ckpt", spread_checkpoints["dot"]]
    tasks = ["--mteb", "GoneRetrieval", "--mteb", "DevRetrieval"]
    found = world("eval", *ckpt, *tasks, "-o", "results.json", code=3)
    assert "GoneRetrieval: its data could not be loaded (Couldn't reach the hub)" in found.stderr
    assert "1 of 2 tasks have no scores: GoneRetrieval" in found.stderr
    assert "HF_ENDPOINT" in found.stderr and "HF_HOME" in found.stderr
    assert not (world.cwd / "results.json").exists()
    encode = MtebEncoder.encode
    monkeypatch.setattr(MtebEncoder, "encode", lambda *_, **__: 1 / 0)
    kept = measured(world, *ckpt, "--mteb", "DevRetrieval")
    assert f"DevRetrieval: ndcg_at_10 {kept['mean']:.4f}" in found.stderr
    monkeypatch.setattr(MtebEncoder, "encode", encode)
    other = measured(world, "--ckpt", spread_checkpoints["cosine"], "--mteb", "DevRetrieval")
    assert other["query_tower"] != kept["query_tower"], "another model is measured itself"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no run is named"),
        (["--mteb", "DevRetrieval"], "--mteb needs --ckpt"),
        (["x.trec", "--mteb", "DevRetrieval", "--ckpt", "c"], "RUNS: --mteb measures a checkpoint"),
        (["--mteb", "DevRetrieval", "--ckpt", "c", "--split", "dev"], "--split: --mteb measures"),
        (["--mteb", "DevRetrieval", "--ckpt", "c", "--measures", "RR@5"], "--measures: --mteb"),
        (["x.trec", "-o", "y.json"], "--output: only --mteb writes an output"),
        (["x.trec", "--force"], "--force: only --mteb writes an output"),
    ],
)
def test_settings_of_the_other_kind_are_refused(inside, arguments, words):
    assert words in inside("eval", *arguments, code=2).stderr


def test_settings_that_a_project_shares_are_accepted(world, spread_checkpoints):
    """`ance init` writes such a table."""
    shared = f'[all]\ndata = "data"\ngpus = "none"\nckpt = "{spread_checkpoints["dot"]}"\n'
    (world.cwd / "ance.toml").write_text(shared)
    assert len(measured(world, "--mteb", "DevRetrieval")["tasks"]) == 1
    (world.cwd / "x.trec").write_text("q24 Q0 d24 1 1.0 t\n")
    assert measured(world, "x.trec", "--split", "dev")["runs"][0]["measures"]
