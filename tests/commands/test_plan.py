"""What a run would come to: in dry runs, and in the warnings of real ones."""

import json

import pytest

from tests.world import Ance, AnceInside, make_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("plan")
    make_dataset(folder / "data")
    program = AnceInside(folder)
    program("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20,
            "-o", "bm25.jsonl")  # fmt: skip
    return program


def warnings(found):
    return [line for line in found.stderr.splitlines() if line.startswith("warning:")]


def test_the_dry_run_of_a_segment(world, backbone):
    train = ["train-segment", "bm25.jsonl", "--data", "data", "--ckpt", backbone, "--batch-size", 8]
    found = world(*train, "--steps", 150, "--dry-run", "--json", "-o", "dry")
    summary = json.loads(found.stdout)
    plan = summary["plan"]
    assert (plan["steps"], plan["pairs_per_step"], plan["epochs"]) == (150, 8, 25.0)
    assert (plan["query_length"], summary["query_length"]) == (8, 8)
    assert plan["passage_length"] == summary["passage_length"] == 32
    assert plan["cut"] == {"queries": "0.0%", "passages": "0.0%"} and plan["minutes"] >= 0
    assert "25.0 times, in 150 steps of 8 pairs" in warnings(found)[0]
    assert not (world.cwd / "dry").exists()


def test_a_run_warns_once_and_keeps_the_lengths_that_it_chose(world, backbone):
    train = ["train-segment", "bm25.jsonl", "--data", "data", "--ckpt", backbone,
             "--batch-size", 1, "--passage-length", 8, "--total-steps", 1000,
             "--steps"]  # fmt: skip
    first = warnings(world(*train, 1, "-o", "run"))
    assert "each of its 48 pairs 20.8 times" in first[0]
    assert "passages have more than 8 tokens and are cut (--passage-length)" in first[1]
    assert len(first) == 2
    settings = json.loads((world.cwd / "run/latest/ance.json").read_text())
    identity = json.loads((world.cwd / "run/run.json").read_text())["identity"]
    assert [settings["query_length"], settings["passage_length"]] == [8, 8]
    assert [identity["query_length"], identity["passage_length"]] == [8, 8]
    assert warnings(world(*train, 2, "-o", "run")) == []
    again = json.loads(world("train-segment", "bm25.jsonl", "--steps", 3, "-o", "run",
                             "--dry-run", "--json").stdout)  # fmt: skip
    assert (again["plan"]["steps"], again["plan"]["query_length"]) == (3, 8)


def test_the_dry_run_of_a_loop(world, backbone, checkpoint):
    loop = ["loop", "--data", "data", "--ckpt", backbone, "--batch-size", 8, "--depth", 12]
    found = world(*loop, "--refresh-every", 100, "--segments", 2, "--dry-run", "--json", "-o", "x")
    plan = json.loads(found.stdout)["plan"]
    assert (plan["steps"], plan["epochs"], plan["refreshes"]) == (200, 33.33, 3)
    assert (plan["depth"], plan["query_length"], plan["passage_length"]) == (12, 8, 32)
    assert plan["minutes"].keys() == {"training", "encoding"}
    assert len(warnings(found)) == 1 and "--refresh-every and --segments" in warnings(found)[0]
    small = ["--preset", "small", "--refresh-every", 3, "--segments", 2, "--dry-run", "--json"]
    found = world("loop", "--data", "data", "--ckpt", checkpoint, *small, "-o", "x")
    plan = json.loads(found.stdout)["plan"]
    assert (plan["preset"], plan["query_length"], plan["passage_length"]) == ("small", 24, 96)
    assert warnings(found) == []


def test_a_loop_warns_once_and_its_run_has_the_lengths_of_the_dry_run(world, backbone):
    loop = ["loop", "--data", "data", "--ckpt", backbone, "--batch-size", 48, "--depth", 12,
            "--negatives", 2, "--refresh-every", 11, "--segments", 2, "--lr", "1e-5",
            "--dev-split", "none", "-o", "looped"]  # fmt: skip
    planned = json.loads(world(*loop, "--dry-run", "--json").stdout)["plan"]
    assert planned["epochs"] == 22
    program = Ance(world.cwd)
    found = [line for line in warnings(program(*loop)) if "pairs" in line or "cut" in line]
    assert len(found) == 1 and "each of its 48 pairs 22.0 times" in found[0]
    settings = json.loads((world.cwd / "looped/latest/ance.json").read_text())
    for name in ("query_length", "passage_length"):
        assert settings[name] == planned[name]
    repeated = json.loads(world(*loop, "--dry-run", "--json").stdout)["plan"]
    assert repeated["passage_length"] == planned["passage_length"]
