"""Reading a run folder in any state, also while it changes."""

import json
import shutil
import threading
import time

import numpy as np
import pytest

from ance_cli.errors import BadInput
from ance_cli.formats.lease import hold
from ance_cli.formats.run_folder import REFRESHER
from ance_cli.loop.status import status
from ance_cli.loop.status_schema import explained


@pytest.fixture
def run(tmp_path):
    """A run that was only made."""
    folder = tmp_path / "run"
    (folder / "lease").mkdir(parents=True)
    for name in ("checkpoints", "state", "generations"):
        (folder / name).mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def ledger(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def log_line(step, rate, segment=1, **more):
    return {"step": step, "epoch": 0, "loss": 1 / step, "lr": 0.1, "steps_per_s": rate,
            "tokens_per_s": 10 * rate, "segment": segment, "generation": 1, **more}  # fmt: skip


def generation(run, number, step, **stats):
    folder = run / "generations" / f"{number:04d}"
    folder.mkdir()
    stats = {"checkpoint_step": step, "seconds": {"all": 30.0}, **stats}
    (folder / "manifest.json").write_text(json.dumps({"stats": stats}))


def looping(run, mode, published, last_step=100, every=20, **more):
    settings = {"mode": mode, "last_step": last_step, "refresh_every": every, **more}
    (run / "loop.json").write_text(json.dumps(settings))
    pointer = {"generation": 1, "checkpoint_step": published, "path": "generations/0001"}
    (run / "negatives.json").write_text(json.dumps(pointer))


def test_states(run):
    assert status(run).state == "prepared"
    segment = {"segment": 1, "start_step": 0, "steps": 7, "input": "x"}
    ledger(run / "segments.jsonl", segment)
    assert status(run).state == "stopped" and status(run).training.last_step == 7
    ledger(run / "segments.jsonl", segment, {"finished": 1})
    assert status(run).state == "finished"
    looping(run, "sync", published=80)
    assert status(run).state == "stopped"
    looping(run, "sync", published=100)
    assert status(run).state == "finished"
    looping(run, "sync", published=80)
    ledger(run / "events.jsonl", {"what": "loop finished", "reason": "no better"})
    assert (status(run).state, status(run).reason) == ("finished", "no better")
    with hold(run / "lease" / "trainer", "it"):
        assert status(run).state == "running"
        with pytest.raises(Exception, match="is being written"), hold(run / "lease/trainer", "it"):
            pass
    (run / "run.json").unlink()
    assert status(run).state == "unmade"
    (run / "lease").rmdir()
    with pytest.raises(BadInput, match="is not a run folder"):
        status(run)


def test_rates_are_the_mean_over_the_last_lines_by_time(run):
    """10 steps in 1 s, then 10 steps in 5 s: 20 steps in 6 s, and tokens alike."""
    lines = [log_line(5, 99.0, segment=1), log_line(10, 3.0, 2)]
    lines += [log_line(20, 10.0, 2), log_line(30, 2.0, 2, mfu=0.5)]
    ledger(run / "metrics.jsonl", *lines)
    training = status(run).training
    assert training.steps_per_s == pytest.approx(20 / 6, abs=1e-4)
    assert training.tokens_per_s == pytest.approx(200 / 6, abs=1e-4)
    assert training.mfu is None  # not in every line
    assert (training.step, training.loss) == (30, 1 / 30)
    ledger(run / "metrics.jsonl", lines[0])
    assert status(run).training.steps_per_s == 99.0


@pytest.mark.parametrize("mode, refreshes", [("sync", 4), ("async", 1)])
def test_time_left_counts_the_refreshes_that_the_loop_waits_for(run, mode, refreshes):
    """60 steps at 2 a second; checkpoints 40, 60, 80 and 100 have no generation yet."""
    looping(run, mode, published=20)
    generation(run, 1, 20)
    ledger(run / "metrics.jsonl", log_line(30, 2.0), log_line(40, 2.0))
    assert status(run).training.seconds_left is None  # no process works on the run
    with hold(run / "lease" / "supervisor", "it"):
        assert status(run).training.seconds_left == 60 / 2 + refreshes * 30


def test_negatives_in_use_and_published(run):
    generation(run, 1, 0)
    generation(run, 2, 20)
    ledger(run / "switches.jsonl", {"step": 0, "generation": 1})
    ledger(run / "metrics.jsonl", log_line(33, 1.0))
    pointer = {"generation": 2, "checkpoint_step": 20, "path": "generations/0002"}
    (run / "negatives.json").write_text(json.dumps(pointer))
    found = status(run).negatives
    assert (found.generation, found.checkpoint_step, found.age) == (1, 0, 33)
    assert (found.published, found.published_step) == (2, 20)
    ledger(run / "metrics.jsonl", log_line(34, 1.0) | {"generation": None, "negatives_step": 30})
    found = status(run).negatives
    assert (found.generation, found.checkpoint_step, found.age) == (None, 30, 4)


def test_waiting_for_newer_negatives(run):
    looping(run, "async", published=20, max_staleness=20)
    generation(run, 1, 20)
    ledger(run / "segments.jsonl", {"segment": 1, "start_step": 0, "steps": 9, "input": "follow"})
    ledger(run / "switches.jsonl", {"step": 20, "generation": 1})
    with hold(run / "lease" / "trainer", "it"):
        ledger(run / "metrics.jsonl", log_line(39, 1.0))
        assert not status(run).training.waiting
        ledger(run / "metrics.jsonl", log_line(40, 1.0))
        assert status(run).training.waiting
    assert not status(run).training.waiting


def test_the_phases_of_a_refresh(run):
    events = [{"time": "t", "who": REFRESHER, "what": "refresh started", "generation": 2,
               "checkpoint_step": 40}]  # fmt: skip
    ledger(run / "events.jsonl", *events)
    (run / "refresh.json").write_text('{"index_factory": "Flat", "dev_split": "dev"}')
    assert status(run).refreshing.phase is None
    partial = run / "generations" / ".0002.partial"
    half = partial / ".embeddings.partial"
    with hold(run / "lease" / REFRESHER, "it"):
        assert status(run).refreshing.phase == "start"
        half.mkdir(parents=True)
        assert status(run).refreshing.phase == "encode"
        done = np.zeros(5, [("rows", "<i8"), ("xxh3", "<u8")])
        done["rows"][2:] = -1
        np.save(half / "done.npy", done)
        found = status(run).refreshing
        assert (found.phase, found.blocks_done, found.blocks) == ("encode", 2, 5)
        assert (found.generation, found.checkpoint_step, found.running) == (2, 40, True)
        (half / "done.npy").write_bytes(b"\x93NUMPY")
        assert status(run).refreshing.blocks is None
        half.rename(partial / "embeddings")
        for phase, leaves in (
            ("index", "index"), ("mine", "negatives.jsonl"), ("probe", "probe.json"),
        ):  # fmt: skip
            assert status(run).refreshing.phase == phase
            (partial / leaves).mkdir()
        assert status(run).refreshing.phase == "measure"
    found = status(run).refreshing
    assert (found.phase, found.running) == ("measure", False)
    (run / "refresh.json").write_text('{"index_factory": null, "dev_split": "none"}')
    assert status(run).refreshing.phase == "publish"
    (run / "refresh.json").write_text('{"dev_split": "none", "guard": "/data/nq"}')
    assert status(run).refreshing.phase == "guard"
    (run / "refresh.json").write_text('{"dev_split": "dev", "guard": "/data/nq"}')
    assert status(run).refreshing.phase == "measure"
    (partial / "dev.json").touch()
    assert status(run).refreshing.phase == "guard"


# ---------------------------------------------------------------- latest and best


def point(run, name, step):
    folder = run / "checkpoints" / f"step-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "ance.json").write_text(json.dumps({"training_step": step}))
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(folder)


def test_before_the_first_checkpoint_there_is_nothing_to_deploy(run):
    assert explained(status(run)) == {}


def test_latest_and_best_say_which_one_to_deploy(run):
    point(run, "latest", 40)
    newest = f"{run}/latest, step 40: the newest weights, where training continues"
    assert explained(status(run)) == {
        "latest": f"{newest}; deploy it, because no generation is measured on dev"
    }
    generation(run, 1, 20, dev={"RR@10": 0.5, "R@100": 0.9})
    point(run, "best", 20)

    def best():
        found = explained(status(run))
        assert found["latest"] == newest
        return found["best"].removeprefix(f"{run}/best, step ")

    highest = "deploy this one; its RR@10 on dev is the highest, 0.5000"
    assert best() == f"20: {highest}; latest is not measured"
    generation(run, 2, 40, dev={"RR@10": 0.4375})
    assert best() == f"20: {highest}; 0.0625 above latest"
    found = status(run)
    assert (found.latest.step, found.latest.dev) == (40, {"RR@10": 0.4375})
    assert (found.best.path, found.best.dev["R@100"]) == (f"{run}/best", 0.9)
    generation(run, 3, 40, dev={"RR@10": 0.5})
    assert best() == f"20: {highest}; latest is equally good"
    point(run, "best", 40)
    assert best() == f"40: {highest}; latest is the same checkpoint"


def test_the_best_within_the_margin_may_be_below_latest(run):
    point(run, "latest", 40)
    point(run, "best", 20)
    generation(run, 1, 20, dev={"RR@10": 0.5}, guard={"RR@10": 0.3}, guard_fall=0.0)
    generation(run, 2, 40, dev={"RR@10": 0.75}, guard={"RR@10": 0.2}, guard_fall=0.1)
    (run / "refresh.json").write_text('{"guard": "/data/nq", "guard_margin": 0.05}')
    found = status(run)
    assert (found.guard, found.guard_margin) == ("/data/nq", 0.05)
    assert [refresh.guard_fall for refresh in found.refreshes] == [0.0, 0.1]
    assert explained(found)["best"].endswith(
        "its RR@10 on dev is the highest within --guard-margin 0.05, 0.5000; 0.2500 below latest, "
        "which has fallen too far on the guard"
    )


def test_a_refresh_daemon_between_two_refreshes(run):
    looping(run, "async", published=20)
    started = {"who": "supervisor", "what": f"{REFRESHER} started"}
    ledger(run / "events.jsonl", started)
    assert status(run).refreshing.phase is None
    with hold(run / "lease" / "supervisor", "it"):
        assert status(run).refreshing.phase == "waiting"
        ledger(run / "events.jsonl", started, {"who": "supervisor", "what": f"{REFRESHER} died"})
        assert status(run).refreshing.phase is None


def test_the_last_errors_and_the_last_drift(run):
    events = [{"time": f"t{n}", "who": "w", "what": "stage failed", "exit_code": n}
              for n in range(12)]  # fmt: skip
    events += [{"what": "drift measured", "overlap": x} for x in (0.9, 0.4)]
    events += [{"time": "t", "who": "trainer", "what": "generation refused", "reason": "broken"}]
    ledger(run / "events.jsonl", *events, {"what": "segment finished"})
    found = status(run)
    assert [problem.facts.get("exit_code") for problem in found.problems] == [*range(3, 12), None]
    assert found.problems[-1].facts == {"reason": "broken"}
    assert found.drift["overlap"] == 0.4


def test_damaged_and_missing_files_are_skipped(run):
    for name in ("loop.json", "negatives.json", "refresh.json", "metrics.jsonl", "events.jsonl",
                 "segments.jsonl", "switches.jsonl"):  # fmt: skip
        (run / name).write_bytes(b'{"half": \n[1]\n\xff')
    (run / "generations" / "0001").mkdir()
    (run / "generations" / "0001" / "manifest.json").write_bytes(b"{")
    (run / "lease" / "trainer").write_bytes(b"")
    (run / "best").symlink_to("checkpoints/gone")
    found = status(run)
    assert (found.state, found.refreshes, found.workers) == ("prepared", [], [])


def test_only_the_end_of_a_long_log_is_read(run):
    ledger(run / "metrics.jsonl", *(log_line(n, 1.0) for n in range(1, 3000)))
    assert status(run).training.step == 2999


def test_files_that_come_and_go_while_it_looks(run):
    """A refresh appears, fills and is published or dropped, again and again."""
    stop = threading.Event()

    def work():
        partial, final = run / "generations" / ".0001.partial", run / "generations" / "0001"
        while not stop.is_set():
            (partial / ".embeddings.partial").mkdir(parents=True)
            np.save(partial / ".embeddings.partial" / "done.npy", np.zeros(1, [("rows", "<i8")]))
            (partial / ".embeddings.partial").rename(partial / "embeddings")
            (partial / "manifest.json").write_text('{"stats": {"checkpoint_step": 1}}')
            partial.rename(final)
            shutil.rmtree(final)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert status(run).state == "prepared"
    finally:
        stop.set()
        thread.join()
