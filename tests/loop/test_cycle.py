"""The next stage of an alternating loop, by what the run holds."""

import json

import pytest

from ance_cli.loop.cycle import cycle
from ance_cli.loop.supervisor import StageFailed


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
