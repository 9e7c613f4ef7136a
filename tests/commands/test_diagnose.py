"""`ance diagnose` through the binary, on the small dataset."""

import json
from types import SimpleNamespace

import pytest

from tests.world import Ance, AnceInside, make_dataset

SMALL = ["--sample", 5, "--draws", 3, "--depth", 6, "--batch-size", 4, "--engine", "bm25s",
         "--threads", 1, "--dtype", "fp32"]  # fmt: skip
KINDS = ["rand", "nce", "bm25", "ance", "ance+rand", "oracle"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    """A short run with two generations, and the vectors of its newest checkpoint."""
    folder = tmp_path_factory.mktemp("diagnose")
    make_dataset(folder / "data")
    program = AnceInside(folder)
    program("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 12, "--negatives",
            4, "-o", "bm25.jsonl")  # fmt: skip
    program("train-segment", "bm25.jsonl", "--data", "data", "--ckpt", checkpoint, "--steps", 4,
            "--total-steps", 8, "--batch-size", 8, "--lr", "1e-3", "--log-every", 1,
            "-o", "run")  # fmt: skip
    program("refresh", "run", "--depth", 12, "--negatives", 4)
    program("train-segment", "run/generations/0001/negatives.jsonl", "--steps", 4,
            "--log-every", 1, "-o", "run")  # fmt: skip
    program("refresh", "run")
    diagnose = ["diagnose", "--ckpt", "run/latest", "--data", "data", "--embeddings",
                "run/generations/0002/embeddings", *SMALL]  # fmt: skip
    return SimpleNamespace(inside=program, ance=Ance(folder), diagnose=diagnose, cwd=folder)


@pytest.mark.long
def test_figures_replace_only_figures(world):
    call = [*world.diagnose, "--split", "train", "-o", "drawn.json", "--figures", "drawn"]
    world.ance(*call)
    world.ance(*call)
    photo = world.cwd / "drawn" / "long-tail.png"
    photo.write_bytes(b"\x89PNG a photo")
    found = world.ance(*call, code=4).stderr
    assert "drawn/long-tail.png: exists and was not drawn by ance diagnose" in found
    assert photo.read_bytes() == b"\x89PNG a photo"


def test_report_figures_and_second_call(world):
    call = [*world.diagnose, "--split", "train", "--run", "run", "-o", "out.json", "--figures", "f"]
    shown = world.ance(*call)
    assert shown.stdout == ""
    for words in ("gradients at the encodings", "suspected false negatives", "refreshes",
                  "made diagnosis out.json"):  # fmt: skip
        assert words in shown.stderr
    names = {"long-tail", "gradient-norms", "bias-and-variance", "negatives", "training"}
    there = {path.name for path in (world.cwd / "f").iterdir()}
    assert {f"{name}.{ending}" for name in names for ending in ("png", "svg")} <= there
    assert all((world.cwd / "f" / name).read_bytes() for name in there)

    report = json.loads((world.cwd / "out.json").read_text())
    rows = {row["sampler"]: row for row in report["samplers"]}
    assert list(rows) == KINDS
    for kind, row in rows.items():
        assert row["encodings"]["norm"] > 0 and row["parameters"]["norm"] > 0
        assert row["encodings"]["variance"] >= -1e-12
        assert (row["encodings"]["bias"] > 0) == (kind in ("nce", "bm25", "ance")), kind
    # 64 documents without two positives, and of q0 without the duplicate
    assert 61 <= rows["rand"]["support"] <= 62
    assert rows["ance"]["support"] == 6 and rows["ance"]["test_time"] == pytest.approx(1)
    assert rows["rand"]["test_time"] == pytest.approx(6 / rows["rand"]["support"], rel=0.01)
    assert rows["oracle"]["encodings"]["variance"] <= rows["rand"]["encodings"]["variance"]
    assert rows["oracle"]["encodings"]["norm"] >= rows["rand"]["encodings"]["norm"]
    assert 5 <= report["bound"]["gradients"] <= 5 * len(KINDS) * 3
    assert -1 <= report["bound"]["spearman"] <= 1
    batch = report["batch"]
    assert batch["simulated_uniform"] == pytest.approx(batch["at_least_one"], abs=0.05)
    tail = report["long_tail"]
    assert tail["ranks"][0] == 1 and tail["mean"][0] > 0 > tail["mean"][-1]
    for suspect in report["suspects"]:
        assert suspect["suspect"] and suspect["positive"] and suspect["query"]
    history = report["history"]
    assert history["training"]["step"] == [1, 2, 3, 4, 5, 6, 7, 8]
    newest = history["generations"][-1]
    # the second generation was mined by the diagnosed checkpoint
    assert newest["test_time"] == 1 and "RR@10" in newest["dev"]

    again = world.ance(*call, "--json")
    found = json.loads(again.stdout)
    assert found["up_to_date"] and found["samplers"] == report["samplers"]


def test_no_positive_and_no_duplicate_is_analysed(world):
    world.inside(*world.diagnose, "--split", "train", "--sample", 24, "-o", "all.json", "--quiet")
    report = json.loads((world.cwd / "all.json").read_text())
    assert report["queries"] == 24
    positives = {}
    for line in (world.cwd / "data/qrels/train.tsv").read_text().splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        if grade == "1":
            positives.setdefault(query_id, set()).add(doc_id)
    positives["q0"].add("d63")
    panels = {panel["query_id"]: panel for panel in report["panels"]}
    for query_id, panel in panels.items():
        assert not positives[query_id] & {*panel["model"], *panel["bm25"]}
    for suspect in report["suspects"]:
        assert suspect["suspect_id"] not in positives[suspect["query_id"]]
    assert "q0" in {suspect["query_id"] for suspect in report["suspects"]} | set(panels)


def test_an_exact_index_gives_the_same_negatives(world):
    world.inside("index", "run/generations/0002/embeddings", "-o", "index", "--factory", "Flat")
    for name, extra in (("exact", []), ("index", ["--index", "index"])):
        world.inside(*world.diagnose, *extra, "-o", f"{name}.json", "--quiet")
    exact, index = (
        json.loads((world.cwd / f"{name}.json").read_text())["samplers"]
        for name in ("exact", "index")
    )
    for first, second in zip(exact, index, strict=True):
        assert first["test_time"] == pytest.approx(second["test_time"])
        for name in ("bias", "variance"):
            assert first["encodings"][name] == pytest.approx(second["encodings"][name], rel=1e-3)


def test_maxp_and_other_losses(world, checkpoint):
    """Three segments per document: every figure is of the best segment."""
    settings = ["--segmentation", "special", "--passage-length", 10, "--max-segments", 3]
    encode = ["encode", "--ckpt", checkpoint, "--data", "data", "-o", "segments", *settings]
    world.inside(*encode, "--output-dtype", "float32")
    world.inside(
        "diagnose", "--ckpt", checkpoint, "--data", "data", "--embeddings", "segments", *SMALL,
        *settings, "--loss", "hinge", "--margin", 2, "-o", "maxp.json", "--quiet",
    )  # fmt: skip
    report = json.loads((world.cwd / "maxp.json").read_text())
    assert [row["sampler"] for row in report["samplers"]] == KINDS
    assert report["settings"]["loss"] == "hinge"


def test_dry_run_and_refusals(world, checkpoint):
    dry = world.inside(*world.diagnose, "-o", "dry.json", "--dry-run", "--json")
    assert json.loads(dry.stdout)["dry_run"] and not (world.cwd / "dry.json").exists()
    foreign = ["diagnose", "--ckpt", checkpoint, "--data", "data", "--embeddings",
               "run/generations/0002/embeddings", *SMALL, "-o", "no.json"]  # fmt: skip
    assert "made by another passage encoder" in world.inside(*foreign, code=4).stderr
    few = world.inside(*world.diagnose, "--draws", 1, "-o", "no.json", code=2)
    assert "--draws must be between 2" in few.stderr
    wrong = world.inside(*world.diagnose, "--run", "data", "-o", "no.json", code=3)
    assert "is not a run folder" in wrong.stderr
    assert not (world.cwd / "no.json").exists()
