"""A child that dies: when it is restarted, with which command, and when restarts end."""

from types import SimpleNamespace

import pytest

from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop import async_processes
from ance_cli.loop.async_processes import Child, ManagedProcess
from ance_cli.loop.supervisor import StageFailed
from ance_cli.progress import Silent
from tests.world import jsonl


class Machine:
    """A clock and children that a test controls."""

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
    monkeypatch.setattr(async_processes, "start", machine.start)
    monkeypatch.setattr(async_processes.time, "monotonic", lambda: machine.now)
    return machine


def make(tmp_path, waits=lambda: False, command=lambda: ["train-segment"], reporter=Silent()):
    child = Child("trainer", command, frozenset(), waits)
    return ManagedProcess(child, 3, RunFolder(tmp_path / "run"), reporter)


def ends_with(machine, process, code):
    """Start the child as soon as it may be restarted, let it end, return the pause after that."""
    machine.now, machine.code = process._not_before, code
    process.tend()
    assert process._process is not None
    process.tend()
    return process._not_before - machine.now


def test_pauses_grow_up_to_a_minute_for_as_long_as_it_takes(machine, tmp_path, monkeypatch):
    """Over a thousand restarts, as on a disk that is full for a night."""
    monkeypatch.setattr(RunFolder, "event", lambda *_, **__: None)
    process = make(tmp_path, waits=lambda: True)
    pauses = [ends_with(machine, process, 5) for _ in range(1100)]
    assert pauses == [1, 2, 4, 8, 16, 32] + [60] * 1094


def test_tries_while_the_disk_is_full_do_not_count(machine, tmp_path):
    full = True
    process = make(tmp_path, waits=lambda: full)
    for _ in range(4):
        ends_with(machine, process, 5)
    full = False
    assert [ends_with(machine, process, -9) for _ in range(3)] == [16, 32, 60]
    with pytest.raises(StageFailed, match="ended with signal SIGKILL"):
        ends_with(machine, process, -9)
    assert len(jsonl(tmp_path / "run" / "events.jsonl")) == 16


def test_a_full_disk_that_is_not_waited_for_counts(machine, tmp_path):
    process = make(tmp_path)
    for _ in range(3):
        ends_with(machine, process, 5)
    with pytest.raises(StageFailed) as failure:
        ends_with(machine, process, 5)
    assert failure.value.exit_code == 5


def test_a_long_life_gives_tries_and_pauses_back(machine, tmp_path):
    process = make(tmp_path)
    for _ in range(3):
        ends_with(machine, process, 1)
    machine.now, machine.code = process._not_before, None
    process.tend()
    machine.now, machine.code = machine.now + 301, 1
    process.tend()
    assert process._not_before - machine.now == 1
    assert [ends_with(machine, process, 1) for _ in range(2)] == [2, 4]


def test_each_start_asks_what_is_to_do(machine, tmp_path):
    commands = [["first"], ["second"], None]
    process = make(tmp_path, command=lambda: commands.pop(0))
    ends_with(machine, process, 1)
    ends_with(machine, process, 1)
    assert machine.started == [["first"], ["second"]] and not process.is_done
    machine.now = process._not_before
    process.tend()
    assert process.is_done and len(machine.started) == 2


def test_a_disk_too_full_for_a_line_is_no_reason_to_end(machine, tmp_path, full_disk):
    reporter, warnings = full_disk
    process = make(tmp_path, waits=lambda: True, reporter=reporter)
    assert ends_with(machine, process, 5) == 1
    assert warnings[:2] == ["events.jsonl: no room left on the disk"] * 2
