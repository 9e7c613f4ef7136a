"""Training that follows the run's generations while somebody else publishes them."""

import json
import os
import shutil
import signal
import time

import pytest

from ance_cli.formats.ledgers import read_ledger
from tests.world import Ance, AnceInside, jsonl, make_dataset

RECIPE = ["--batch-size", 8, "--lr", "1e-3", "--dtype", "fp32"]
FOLLOW = ["train-segment", "--follow", "--steps", 400, "--checkpoint-every", 20, "--log-every", 1,
          "--state-minutes", "0.001", "-o", "run"]  # fmt: skip


@pytest.fixture
def world(tmp_path, checkpoint):
    """A run that was only prepared."""
    make_dataset(tmp_path / "data")
    program = AnceInside(tmp_path)
    program("train-segment", "--data", "data", "--ckpt", checkpoint, *RECIPE, "--steps", 0,
            "--total-steps", 400, "-o", "run")  # fmt: skip
    program.run = tmp_path / "run"
    return program


def wait_for(what, process, seconds=180):
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.02)


def lines(world):
    """Of a file that grows meanwhile: one may be seen before its end is."""
    return read_ledger(world.run / "metrics.jsonl")


def refresh(world, *flags):
    world("refresh", "run", "--depth", 10, "--negatives", 4, "--dev-split", "none", *flags)


@pytest.mark.long
def test_a_switch_comes_at_the_next_batch_without_a_pause(world):
    """It waits for the first generation, then goes on while the second is made; the ledger names
    each switch, and no step is missing or done twice."""
    process = Ance(world.cwd).start(*FOLLOW)
    events = world.run / "events.jsonl"
    wait_for(lambda: "waiting for the first negatives" in events.read_text(), process)
    assert lines(world) == []
    refresh(world)
    wait_for(lambda: any(line["step"] > 25 for line in lines(world)), process)
    refresh(world)
    wait_for(lambda: any(line["generation"] == 2 for line in lines(world)), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 143, stderr
    assert "waiting for the first negatives" in stderr and "switched to generation 2" in stderr
    first, second = jsonl(world.run / "switches.jsonl")
    assert first == {"step": 0, "generation": 1} and second["generation"] == 2
    found = lines(world)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    for line in found:
        assert line["generation"] == (1 if line["step"] <= second["step"] else 2)
        mined = 0 if line["generation"] == 1 else json.loads(
            (world.run / "generations/0002/manifest.json").read_text()
        )["stats"]["checkpoint_step"]  # fmt: skip
        assert line["negatives_age"] == line["step"] - mined


@pytest.mark.long
def test_killed_after_a_switch_it_repeats_the_switch_and_its_losses(world):
    """The steps between the newest state and the last logged one are those of before."""
    refresh(world)
    follow = [*FOLLOW]
    follow[follow.index("0.001")] = "1000"  # states at checkpoints alone
    process = Ance(world.cwd).start(*follow)
    wait_for(lambda: any(line["step"] > 22 for line in lines(world)), process)
    refresh(world)
    wait_for(lambda: any(line["generation"] == 2 for line in lines(world)), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {line["step"]: line for line in lines(world)}
    switches = jsonl(world.run / "switches.jsonl")
    states = [int(path.name[5:]) for path in (world.run / "state").glob("step-*")]
    assert max(states) < max(before)  # there is something to repeat
    refresh(world, "--force")  # a third generation is there at once, and has to wait
    assert json.loads((world.run / "negatives.json").read_text())["generation"] == 3
    process = Ance(world.cwd).start(*follow)
    wait_for(lambda: any(line["generation"] == 3 for line in lines(world)), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = {line["step"]: line for line in lines(world)}
    for step, line in before.items():
        if step in after:
            assert (after[step]["loss"], after[step]["generation"]) == (
                line["loss"], line["generation"],
            )  # fmt: skip
    found = jsonl(world.run / "switches.jsonl")
    assert found[:2] == switches and found[2]["generation"] == 3
    assert found[2]["step"] >= max(before)


@pytest.mark.long
def test_a_damaged_generation_is_skipped(world):
    refresh(world)
    process = Ance(world.cwd).start(*FOLLOW)
    wait_for(lambda: any(line["step"] > 22 for line in lines(world)), process)
    bad = world.run / "generations" / "0002"
    shutil.copytree(world.run / "generations" / "0001", bad)
    (bad / "negatives.jsonl").write_text("{not json\n")
    pointer = {"generation": 2, "checkpoint_step": 20, "path": "generations/0002"}
    (world.run / "new.json").write_text(json.dumps(pointer))
    os.replace(world.run / "new.json", world.run / "negatives.json")
    at = lines(world)[-1]["step"]
    wait_for(lambda: lines(world)[-1]["step"] > at + 10, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert "generation 2 cannot be read and is skipped" in stderr
    assert {line["generation"] for line in lines(world)} == {1}
    assert jsonl(world.run / "switches.jsonl") == [{"step": 0, "generation": 1}]
    assert "generation refused" in (world.run / "events.jsonl").read_text()


@pytest.mark.long
def test_negatives_may_not_grow_older_than_they_may(world):
    refresh(world)
    process = Ance(world.cwd).start(*FOLLOW, "--max-staleness", 20)
    wait_for(lambda: lines(world) and lines(world)[-1]["step"] == 20, process)
    time.sleep(1)
    assert lines(world)[-1]["step"] == 20
    refresh(world)
    wait_for(lambda: lines(world)[-1]["step"] == 40, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 143, stderr
    assert "waiting for a new generation, the negatives are 20 steps old" in stderr
    assert jsonl(world.run / "switches.jsonl")[1] == {"step": 20, "generation": 2}
    found = world(*FOLLOW, "--max-staleness", 5, code=2)
    assert "--max-staleness needs a --checkpoint-every that is at most as large" in found.stderr


@pytest.mark.long
def test_two_ranks_switch_at_the_same_step(world, checkpoint):
    world("train-segment", "--data", "data", "--ckpt", checkpoint, "--batch-size", 4, "--lr",
          "1e-3", "--dtype", "fp32", "--steps", 0, "--total-steps", 400, "--cpu-workers", 2,
          "-o", "two")  # fmt: skip
    world.run = world.cwd / "two"
    follow = [*FOLLOW[:-1], "two", "--cpu-workers", 2, "--in-batch", "none"]
    world("refresh", "two", "--depth", 10, "--negatives", 4, "--dev-split", "none")
    process = Ance(world.cwd).start(*follow)
    wait_for(lambda: any(line["step"] > 22 for line in lines(world)), process)
    world("refresh", "two")
    wait_for(lambda: any(line["generation"] == 2 for line in lines(world)), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 143, stderr
    step = jsonl(world.run / "switches.jsonl")[1]["step"]
    for line in lines(world):
        assert line["generation"] == (1 if line["step"] <= step else 2)


@pytest.mark.long
def test_a_refresh_daemon_that_measures_drift_refreshes_only_if_the_model_moved(world):
    """With a threshold of 0 nothing has moved, so only the last checkpoint is refreshed from."""
    refresh(world)
    process = Ance(world.cwd).start(
        "refresh", "run", "--follow", "--refresh", "auto", "--drift-threshold", 0, "--until", 8
    )
    train = ["train-segment", "run/generations/0001/negatives.jsonl", "-o", "run", "--steps", 4]
    world(*train)
    events = world.run / "events.jsonl"
    wait_for(lambda: "drift measured" in events.read_text(), process)
    world(*train, "--force")
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    measured = [event for event in jsonl(events) if event["what"] == "drift measured"]
    assert [(m["checkpoint_step"], m["generation"], m["refresh"]) for m in measured] == [
        (4, 1, False)
    ]
    assert 0 <= measured[0]["overlap"] <= 1 and "no refresh yet" in stderr
    published = json.loads((world.run / "negatives.json").read_text())
    assert (published["generation"], published["checkpoint_step"]) == (2, 8)
    stats = json.loads((world.run / "generations/0002/manifest.json").read_text())["stats"]
    assert 0 <= stats["probe_overlap"] <= 1 and stats["age"] == 0
    assert stats["consumed"] == pytest.approx(8 * 8 / 48, abs=1e-4)
    world(*train[:-1], 2, "--force")
    found = world("refresh", "run", "--follow", "--refresh", "auto", "--drift-threshold", 1.0,
                  "--until", 10)  # fmt: skip
    assert json.loads((world.run / "negatives.json").read_text())["generation"] == 3
    assert "made generation" in found.stderr
