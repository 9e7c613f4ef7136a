"""The runner: what is done is skipped, what fails stops only what needs it, nothing runs twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from ance_cli.formats import lease
from benchmarks.study import runner
from benchmarks.study.__main__ import main
from benchmarks.study.cell import Cell, Placeholders, in_order
from benchmarks.study.results import Results
from benchmarks.study.runner import State
from tests.world import jsonl

_FUSE = "ance fuse {data}/a.trec {data}/b.trec -o {work}/fused.trec"
_EVAL = (
    "ance eval {work}/fused.trec --qrels {data}/qrels.tsv --measures 'RR@10 R@5' "
    "--per-query {work}/fused.tsv"
)


def make(name="fused", commands=(_FUSE,), **fields) -> Cell:
    """A cell; of the one that it is by default `test` reads the output."""
    fields.setdefault("makes", ("{work}/fused.trec",))
    return Cell(name=name, commands=commands, minutes=0.1, **fields)


TESTED = make("tested/seed-7", (_EVAL,), needs=("fused",), seed=7, makes=())


class World:
    """A work folder, a file of results, and what the runner says."""

    def __init__(self, folder):
        for name, first in (("a", "d1"), ("b", "d2")):
            ranked = list(enumerate((first, "d3"), start=1))
            lines = [f"{query} Q0 {doc} {rank} {9 - rank} x"
                     for query in ("q2", "q10") for rank, doc in ranked]  # fmt: skip
            (folder / f"{name}.trec").write_text("\n".join(lines) + "\n")
        labels = ["query-id\tcorpus-id\tscore", "q2\td1\t1", "q10\td3\t1"]
        (folder / "qrels.tsv").write_text("\n".join(labels) + "\n")
        self.places = Placeholders(data=folder, weights=folder, work=folder / "work", threads=1)
        self.results = Results(folder / "results.jsonl")
        self.said = []

    def run(self, *cells, chosen=None, say=None):
        by_name = in_order(cells)
        self.said.clear()
        return runner.run(by_name, chosen or list(by_name), self.results, self.places,
                          say or self.said.append)  # fmt: skip

    @property
    def lines(self):
        return jsonl(self.results.path) if self.results.path.exists() else []

    def states(self, *cells):
        return runner.trainer_state(in_order(cells), self.results, self.places)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    return World(tmp_path)


def test_a_line_tells_all_of_a_cell_and_done_is_done(world):
    assert world.states(make(), TESTED) == {
        "fused": State.READY, "tested/seed-7": State.WAITING,
    }  # fmt: skip
    assert world.run(make(), TESTED, chosen=["tested/seed-7"]) == []
    first, line = world.lines
    assert (first["cell"], line["cell"], line["seed"]) == ("fused", "tested/seed-7", 7)
    assert (
        line["commands"] == [_EVAL]
        and line["recipe"] == in_order([make(), TESTED])[line["cell"]].recipe
    )
    # d3 is second in both runs and so first: what q10 wants; q2's d1 shares the next place
    first_of_q10, of_q2 = line["per_query"]["fused"]
    assert first_of_q10 == 1 and of_q2 in (0.5, 0.3333)
    mean = line["measures"]["fused"]["RR@10"]["mean"]
    assert mean == pytest.approx((1 + of_q2) / 2, abs=1e-4)
    assert set(line["measures"]["fused"]) == {"RR@10", "R@5"}
    assert len(line["seconds"]) == 1 and line["seconds"][0] > 0
    assert line["machine"]["cores"] >= 1 and line["threads"] == 1
    assert {"date", "ance"} <= set(line)
    assert str(world.places.work) not in json.dumps(world.lines)

    assert world.states(make(), TESTED)["tested/seed-7"] == State.DONE
    assert world.run(make(), TESTED) == []
    assert len(world.lines) == 2 and world.said == []


def test_a_changed_recipe_is_run_again_and_what_is_there_is_used(world):
    world.run(make())
    changed = make(commands=(_FUSE, "ance fuse {data}/b.trec {data}/a.trec -o {work}/more.trec"))
    assert world.states(changed)["fused"] == State.READY
    assert world.run(changed) == []
    old, new = world.lines
    assert old["recipe"] != new["recipe"]
    assert new["seconds"][0] is None and new["seconds"][1] > 0  # the first was up to date


def test_an_artifact_that_is_gone_is_made_again_for_who_needs_it(world):
    world.run(make())
    fused = world.places.work / "fused.trec"
    before = fused.read_bytes()
    for path in world.places.work.iterdir():
        if path.is_file():
            path.unlink()
    assert world.run(make()) == [] and not fused.exists()  # the line is there, and nobody asks
    assert world.run(make(), TESTED) == []
    assert fused.read_bytes() == before
    assert [line["cell"] for line in world.lines] == ["fused", "tested/seed-7"]


def test_a_failed_cell_stops_only_what_needs_it(world):
    broken = make(commands=("ance fuse {data}/a.trec {data}/none.trec -o {work}/fused.trec",))
    other = make("other", ("ance fuse {data}/a.trec {data}/b.trec -o {work}/o.trec",), makes=())
    assert world.run(broken, TESTED, other) == ["fused", "tested/seed-7"]
    assert [line["cell"] for line in world.lines] == ["other"]
    told = "\n".join(world.said)
    assert "fused: failed: `ance fuse` ended with exit code 3" in told and "none.trec" in told
    assert "logs/fused.log" in told
    assert "tested/seed-7: not run, fused has failed" in told


def test_a_cell_that_needs_more_cores_is_passed_over(world):
    large = make(cores=10_000)
    assert world.states(large)["fused"] == State.TOO_FEW_CORES
    assert world.run(large) == [] and world.lines == []
    assert "needs 10000 cores" in world.said[0]


def test_a_cell_that_another_runner_holds_is_left_to_it(world):
    cell = make()
    with lease.hold(runner.claim(cell, world.places), "fused"):
        assert world.states(cell)["fused"] == State.RUNNING
        assert world.run(cell) == []
    assert world.lines == [] and world.said[-1] == "left to another runner: fused"


def test_a_need_that_another_runner_holds_is_waited_for(world):
    held = ExitStack()
    held.enter_context(lease.hold(runner.claim(make(), world.places), "fused"))
    threading.Timer(0.4, held.close).start()
    assert world.run(make(), TESTED, chosen=["tested/seed-7"]) == []
    assert [line["cell"] for line in world.lines] == ["fused", "tested/seed-7"]


def test_an_output_that_somebody_writes_by_hand_is_waited_for(world):
    held = ExitStack()
    world.places.work.mkdir()
    output = world.places.work / "fused.trec"
    held.enter_context(lease.hold(lease.lease_name(output), "by hand"))
    said = []

    def say(line):
        said.append(line)
        if "is being written" in line:
            held.close()

    assert world.run(make(), say=say) == []
    assert len(world.lines) == 1 and sum("is being written by" in each for each in said) == 1


_SCRIPT = """
import sys
from pathlib import Path
from ance_cli.errors import Stopped, install_signal_handlers
from benchmarks.study.cell import Cell, Placeholders, in_order
from benchmarks.study.results import Results
from benchmarks.study.runner import run

install_signal_handlers()
folder = Path(sys.argv[1])
cell = Cell(name="fused", commands=(sys.argv[2],), minutes=1)
places = Placeholders(data=folder, weights=folder, work=folder / "work", threads=1)
try:
    run(in_order([cell]), ["fused"], Results(folder / "results.jsonl"), places, print)
except Stopped as stop:
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_command_and_the_same_call_continues(world, signum):
    folder = world.places.data
    (folder / "b.trec").rename(folder / "kept.trec")
    os.mkfifo(folder / "b.trec")  # whoever reads it waits
    child = subprocess.Popen([sys.executable, "-c", _SCRIPT, folder, _FUSE])
    log = folder / "work" / "logs" / "fused.log"
    _until(lambda: log.exists() and b"ance fuse" in log.read_bytes())
    (reader,) = _until(lambda: _children(child.pid))
    child.send_signal(signum)
    assert child.wait(timeout=240) == 128 + signum
    assert not os.path.exists(f"/proc/{reader}")
    assert world.lines == []

    (folder / "b.trec").unlink()
    (folder / "kept.trec").rename(folder / "b.trec")
    assert world.run(make()) == []
    assert len(world.lines) == 1


def _until(there, seconds=240):
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as handle:
        return [int(word) for word in handle.read().split()]


def test_the_newest_line_of_the_present_recipe_counts(tmp_path):
    cell = make()
    results = Results(tmp_path / "results.jsonl")
    for recipe, place in (("old", 1), (cell.recipe, 2), (cell.recipe, 3), ("newer", 4)):
        results.add({"cell": cell.name, "recipe": recipe, "place": place})
    with open(results.path, "ab") as handle:
        handle.write(b'{"cell": "fused", "rec')  # a kill
    assert results.of([cell])["fused"]["place"] == 3
    assert results.of([replace(cell, name="other")]) == {}


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ANCE_TEST_DATA", raising=False)
    there = ["--work", str(tmp_path / "w"), "--results", str(tmp_path / "r.jsonl")]
    assert main(["list", "--weights", str(tmp_path), *there]) == 2
    assert "--data is missing" in capsys.readouterr().err
    folders = ["--weights", str(tmp_path), "--data", str(tmp_path)]
    assert main(["list", "table1/bm25-ance", "--seeds", "43", *folders, *there]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["table1/bm25-ance/seed-43", "8", "min", "waiting"]
    assert shown[1].startswith("0 of 1 done")
