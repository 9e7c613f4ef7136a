"""A child that failed is started again, as often as is allowed."""

import pytest

from ance_cli.loop import supervisor
from ance_cli.loop.supervisor import StageFailed, run_stage
from ance_cli.progress import Silent
from tests.world import jsonl


@pytest.fixture
def begun(monkeypatch):
    """What was begun; the children end with the codes in `begun.codes`, one after the other."""
    begun = Begun()

    def run_once(arguments):
        begun.append(arguments)
        return begun.codes.pop(0)

    monkeypatch.setattr(supervisor, "_run_once", run_once)
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: None)
    return begun


class Begun(list):
    codes: tuple = ()


def test_a_disk_too_full_for_a_line_does_not_end_the_tries(run, begun, full_disk):
    reporter, warnings = full_disk
    begun.codes = [5, 0]
    run_stage(lambda: ["refresh"], 3, run, reporter)
    assert warnings == ["events.jsonl: no room left on the disk",
                        "`ance refresh` ended with exit code 5; restarting it in 1 s"]  # fmt: skip


def test_each_try_asks_what_is_to_do(run, begun):
    commands = [["train-segment", "--force"], ["train-segment"]]
    begun.codes = [-9, 3]
    with pytest.raises(StageFailed, match="`ance train-segment` ended with exit code 3"):
        run_stage(lambda: commands.pop(0), 3, run, Silent())
    assert begun == [["train-segment", "--force"], ["train-segment"]]
    assert [event["exit_code"] for event in jsonl(run.path / "events.jsonl")] == [-9, 3]
