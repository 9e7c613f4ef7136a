"""A side that dies: when it is started again, with what, and when that ends."""

from types import SimpleNamespace

import pytest

from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop import processes
from ance_cli.loop.processes import ManagedProcess
from ance_cli.loop.supervisor import StageFailed
from ance_cli.progress import Silent
from tests.world import jsonl


class Machine:
    """A clock that stands still until it is told, and children that end as they are told."""

    def __init__(self):
        self.now = 0.0
        self.code = 0
        self.started = []

    def start(self, arguments, cpus):
        self.started.append(list(arguments))
        return SimpleNamespace(pid=len(self.started), poll=lambda: self.code)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(processes, "start", machine.start)
    monkeypatch.setattr(processes.time, "monotonic", lambda: machine.now)
    return machine


def make(tmp_path, endures=lambda: False, command=lambda: ["train-segment"], reporter=Silent()):
    return ManagedProcess(
        "trainer", command, frozenset(), 3, RunFolder(tmp_path / "run"), reporter, endures
    )


def ends_with(machine, side, code):
    """Start the side again as soon as it may be, let it end, return how long it then pauses."""
    machine.now, machine.code = side._not_before, code
    side.tend()
    assert side._child is not None
    side.tend()
    return side._not_before - machine.now


def test_pauses_grow_up_to_a_minute_for_as_long_as_it_takes(machine, tmp_path, monkeypatch):
    """Over a thousand tries, as a disk gives that is full over night."""
    monkeypatch.setattr(RunFolder, "event", lambda *_, **__: None)
    side = make(tmp_path, endures=lambda: True)
    pauses = [ends_with(machine, side, 5) for _ in range(1100)]
    assert pauses == [1, 2, 4, 8, 16, 32] + [60] * 1094


def test_tries_while_the_disk_is_full_do_not_count(machine, tmp_path):
    full = True
    side = make(tmp_path, endures=lambda: full)
    for _ in range(4):
        ends_with(machine, side, 5)
    full = False
    assert [ends_with(machine, side, -9) for _ in range(3)] == [16, 32, 60]
    with pytest.raises(StageFailed, match="ended with signal SIGKILL"):
        ends_with(machine, side, -9)
    assert len(jsonl(tmp_path / "run" / "events.jsonl")) == 16


def test_a_full_disk_that_is_not_waited_for_counts(machine, tmp_path):
    side = make(tmp_path)
    for _ in range(3):
        ends_with(machine, side, 5)
    with pytest.raises(StageFailed) as failure:
        ends_with(machine, side, 5)
    assert failure.value.exit_code == 5


def test_a_long_life_gives_tries_and_pauses_back(machine, tmp_path):
    side = make(tmp_path)
    for _ in range(3):
        ends_with(machine, side, 1)
    machine.now, machine.code = side._not_before, None
    side.tend()
    machine.now, machine.code = machine.now + 301, 1
    side.tend()
    assert side._not_before - machine.now == 1
    assert [ends_with(machine, side, 1) for _ in range(2)] == [2, 4]


def test_each_start_asks_what_is_to_do(machine, tmp_path):
    commands = [["first"], ["second"], None]
    side = make(tmp_path, command=lambda: commands.pop(0))
    ends_with(machine, side, 1)
    ends_with(machine, side, 1)
    assert machine.started == [["first"], ["second"]] and not side.is_done
    machine.now = side._not_before
    side.tend()
    assert side.is_done and len(machine.started) == 2


def test_a_disk_too_full_for_a_line_is_no_reason_to_end(machine, tmp_path, full_disk):
    reporter, warnings = full_disk
    side = make(tmp_path, endures=lambda: True, reporter=reporter)
    assert ends_with(machine, side, 5) == 1
    assert warnings[:2] == ["events.jsonl: no room left on the disk"] * 2
