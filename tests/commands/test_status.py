"""`ance status` before, during and after a loop, as a person or a program asks for it."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO

import pytest

from tests.world import Ance, AnceInside, make_dataset

LOOP = ["--data", "data", "--mode", "async", "--refresh-every", 8, "--segments", 2, "--batch-size",
        8, "--lr", "1e-3", "--depth", 12, "--negatives", 4, "--log-every", 1]  # fmt: skip


@pytest.fixture(scope="module")
def looped(tmp_path_factory, checkpoint):
    """A finished asynchronous loop, what its dry run said, and what a viewer saw while it ran."""
    folder = tmp_path_factory.mktemp("status")
    make_dataset(folder / "data")
    program = Ance(folder)
    loop = ["loop", *LOOP, "--ckpt", checkpoint, "-o", "run"]
    program.planned = json.loads(program(*loop, "--dry-run", "--json").stdout)
    assert not (folder / "run").exists()
    process = program.start(*loop)
    until = time.monotonic() + 60
    while not (folder / "run" / "lease").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    viewer = program.start("status", "run", "--watch", "--json", "--interval", 0.2)
    seen, complaints = viewer.communicate(timeout=600)
    assert (viewer.returncode, complaints) == (0, "")
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    program.pid = process.pid
    program.seen = [json.loads(line) for line in seen.splitlines()]
    return program


@pytest.mark.long
def test_while_it_runs(looped):
    seen = looped.seen
    assert {look["state"] for look in seen[:-1]} == {"running"}
    supervisor = seen[0]["workers"][0]
    assert supervisor["role"] == "supervisor" and supervisor["alive"]
    assert supervisor["pid"] == looped.pid and supervisor["command"].startswith("ance loop")
    steps = [look["training"]["step"] for look in seen]
    assert steps == sorted(steps) and len(set(steps)) >= 2
    training = next(look for look in seen if look["negatives"]["generation"] is not None)
    assert {worker["role"] for worker in training["workers"]} >= {"supervisor", "trainer"}
    assert any(look["training"]["seconds_left"] is not None for look in seen)
    phases = {look["refreshing"]["phase"] for look in seen}
    assert phases & {"start", "encode", "mine", "probe", "measure"} and "waiting" in phases
    assert phases <= {None, "waiting", "start", "encode", "mine", "probe", "measure"}


def test_the_viewer_ends_with_the_loop(looped):
    last = looped.seen[-1]
    assert last["state"] == "finished" and last["workers"] == []
    assert [refresh["checkpoint_step"] for refresh in last["refreshes"]][-1] == 16


def test_the_fields_of_json(looped):
    found = json.loads(AnceInside(looped.cwd)("status", "run", "--json").stdout)
    assert list(found) == [
        "run", "time", "state", "mode", "reason", "workers", "training", "negatives", "refreshing",
        "refreshes", "guard", "guard_margin", "latest", "best", "drift", "problems", "disk",
    ]  # fmt: skip
    assert (found["run"], found["mode"], found["reason"]) == ("run", "async", None)
    training = found["training"]
    assert list(training) == [
        "step", "last_step", "epoch", "loss", "lr", "steps_per_s", "tokens_per_s", "mfu",
        "seconds_left", "logged_age", "waiting",
    ]  # fmt: skip
    assert (training["step"], training["last_step"], training["seconds_left"]) == (16, 16, None)
    assert min(training[name] for name in ("loss", "lr", "steps_per_s", "tokens_per_s")) > 0
    assert found["negatives"]["published_step"] == 16
    assert found["refreshing"] == dict.fromkeys(found["refreshing"]) | {"running": False}
    generations = sorted(path.name for path in (looped.cwd / "run" / "generations").iterdir())
    assert [f"{row['generation']:04d}" for row in found["refreshes"]] == generations
    for name, row in zip(generations, found["refreshes"], strict=True):
        path = looped.cwd / "run" / "generations" / name / "manifest.json"
        stats = json.loads(path.read_text())["stats"]
        assert list(row) == [
            "generation", "checkpoint_step", "published", "is_best", "age", "seconds",
            "probe_overlap", "overlap_with_earlier", "churn_against_earlier", "pairs", "negatives",
            "positives_filtered", "pairs_short_of_negatives", "negatives_missing", "consumed",
            "dev", "guard", "guard_fall",
        ]  # fmt: skip
        for field in ("checkpoint_step", "age", "seconds", "probe_overlap", "consumed", "dev"):
            assert row[field] == stats[field]
        removed = stats["audit"]["removed_from_candidates"]
        assert row["positives_filtered"] == removed["ann"]["positives"]
    best = int((looped.cwd / "run" / "best").resolve().name[5:])
    assert [row["checkpoint_step"] for row in found["refreshes"] if row["is_best"]] == [best]
    assert (found["guard"], found["guard_margin"]) == (None, None)
    assert (found["latest"]["path"], found["latest"]["step"]) == ("run/latest", 16)
    assert found["best"]["step"] == best and found["best"]["dev"].keys() >= {"RR@10"}


def test_the_disk_that_the_dry_run_asks_for_is_enough_and_not_far_more(looped):
    planned = looped.planned["disk_bytes"]
    used = looped.seen[-1]["disk"]
    files = [path for path in (looped.cwd / "run").rglob("*") if path.is_file()]
    assert used["all"] == sum(path.stat().st_size for path in files if not path.is_symlink())
    assert used["all"] == sum(used[name] for name in used if name not in ("all", "free"))
    for part in ("embeddings", "index", "candidates", "checkpoints", "states", "records", "all"):
        assert used[part] <= planned[part] <= 8 * used[part]
    assert planned["all"] < 3 * used["all"]


def test_a_copy_elsewhere_with_a_lease_that_nobody_holds(looped, tmp_path):
    shutil.copytree(looped.cwd / "run", tmp_path / "copy", symlinks=True)
    lease = tmp_path / "copy" / "lease" / "trainer"
    lease.write_text(json.dumps({"host": os.uname().nodename, "pid": os.getpid()}))
    before = lease.stat()
    found = json.loads(AnceInside(tmp_path)("status", "copy", "--json").stdout)
    assert found["state"] == "finished"
    assert [(worker["role"], worker["alive"]) for worker in found["workers"]] == [
        ("trainer", False)
    ]
    assert (lease.stat().st_mtime_ns, lease.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert "dead: process" in AnceInside(tmp_path)("status", "copy").stdout


def test_a_person_sees_it_on_any_width(looped):
    from rich.console import Console

    from ance_cli.cli.status import view
    from ance_cli.loop.status import status

    found = status(looped.cwd / "run")
    for width in (60, 80, 160):
        console = Console(file=StringIO(), width=width)
        console.print(view(found, width))
        shown = console.file.getvalue()
        assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
        assert "…" not in shown and "step 16 of 16" in shown
        for word in (
            "RR@10",
            "run/latest",
            "run/best",
            "overlap",
            "filtered",
            "all s",
            "checkpoints",
        ):
            assert word in shown
        assert (shown.count("gen ") == 1) == (width == 160)  # else the table is cut


def stopped(looped, folder):
    """A copy of the run that was not looped to its end."""
    shutil.copytree(looped.cwd / "run", folder, symlinks=True)
    settings = json.loads((folder / "loop.json").read_text())
    (folder / "loop.json").write_text(json.dumps(settings | {"last_step": 99}))
    events = folder / "events.jsonl"
    events.write_text(
        "".join(line + "\n" for line in events.read_text().splitlines() if "loop f" not in line)
        + json.dumps({"time": "2026-01-02T03:04:05+00:00", "who": "supervisor",
                      "what": "trainer died", "exit_code": -9}) + "\n"
    )  # fmt: skip


def test_a_live_view_in_a_terminal_ends_on_ctrl_c(looped, tmp_path):
    stopped(looped, tmp_path / "run")
    ours, theirs = pty.openpty()
    environment = {**Ance(tmp_path).environment(), "TERM": "xterm", "NO_COLOR": "1",
                   "COLUMNS": "60", "LINES": "16"}  # fmt: skip
    viewer = subprocess.Popen(
        [sys.executable, "-m", "ance_cli", "status", "run", "--watch", "--interval", "0.1"],
        cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while shown.count(b"training") < 3:
        shown += os.read(ours, 4096)
    viewer.send_signal(signal.SIGINT)
    try:
        while more := os.read(ours, 4096):
            shown += more
    except OSError:  # the terminal is closed at the other end
        pass
    assert viewer.wait(20) == 0
    os.close(ours)
    text = shown.decode()
    assert "\x1b[3" not in text, "a colour, although NO_COLOR is set"
    words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split())
    assert "run stopped, async" in words and "supervisor: trainer died, exit_code -9" in words
    assert "Traceback" not in text


def test_blocks_of_text_where_there_is_no_terminal(looped, tmp_path):
    stopped(looped, tmp_path / "run")
    viewer = Ance(tmp_path).start("status", "run", "--watch", "--interval", 0.1)
    lines = []
    while sum(line.startswith("--- ") for line in lines) < 3:
        lines.append(viewer.stdout.readline())
    viewer.send_signal(signal.SIGINT)
    _, stderr = viewer.communicate(timeout=20)
    assert (viewer.returncode, stderr) == (0, "")
    assert any(line.startswith("training") for line in lines) and "\x1b" not in "".join(lines)


def test_not_a_run(tmp_path, dataset):
    ance = AnceInside(tmp_path)
    for name, words in (("data", "is not a run folder"), ("nowhere", "no such folder")):
        stderr = ance("status", name, code=3).stderr
        assert f"{name}: {words}: there is no run.json in it" in stderr and "hint: " in stderr
    ance("status", "data", "--watch", "--interval", 0, code=2)


def test_it_loads_nothing_heavy(looped):
    code = (
        "import sys; sys.argv = ['ance', 'status', 'run']\n"
        "from ance_cli.cli.main import run\n"
        "try:\n    run()\nfinally:\n"
        "    heavy = 'torch', 'transformers', 'faiss', 'scipy', 'tokenizers'\n"
        "    print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=looped.cwd, capture_output=True,
                           text=True, env=looped.environment())  # fmt: skip
    assert found.stdout.splitlines()[-1] == "[]", found
