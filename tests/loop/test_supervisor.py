"""Alternating stages: restarts, and the next stage by what the run holds."""

import json

import pytest

from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop import supervisor
from ance_cli.loop.supervisor import StageFailed, cycle, run_stage
from ance_cli.progress import Silent
from tests.world import jsonl


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_settings("run.json", {})
    return run


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


def test_in_turn_after_side_by_side_training_ends_at_the_next_segment(run):
    """A trainer that followed was stopped at step 150: its state is ahead of its checkpoint."""
    for folder, facts, step in (
        (run.checkpoint(100).path, {"training_step": 100}, "ance.json"),
        (run.state(150).path, {"step": 150}, "state.json"),
    ):
        folder.mkdir(parents=True)
        (folder / step).write_text(json.dumps(facts))
    run.publish(2, 100, run.generation(2).path)
    record = {"segment": 1, "start_step": 0, "steps": 200, "input": "follow", "negatives": None}
    run.segments.write_text(json.dumps(record) + "\n")
    asked = []
    with pytest.raises(StageFailed, match="still at step 100"):
        cycle(run, 200, 100, lambda: None, lambda *train: asked.append(train), lambda: None)
    assert asked == [(run.generation(2).negatives, 50)]
