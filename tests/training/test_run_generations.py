"""Following a run's generations: what an interrupted call saw is repeated at the same steps."""

import json

import pytest
import torch

from ance_cli.errors import BadInput
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.ledgers import FOLLOW, read_ledger
from ance_cli.formats.run_folder import RunFolder
from ance_cli.progress import Silent
from ance_cli.training.distributed import World
from ance_cli.training.run_generations import watch_generations
from ance_cli.training.segments import SegmentInput, new_segment, segment_input

WORLD = World(torch.device("cpu"))


@pytest.fixture
def run(tmp_path):
    """A run with three generations, of which the third is published."""
    run = RunFolder(tmp_path / "run")
    for number in (1, 2, 3):
        folder = run.generation(number).path
        folder.mkdir(parents=True)
        negatives = folder / "negatives.jsonl"
        negatives.write_text(f'{{"generation": {number}}}\n')
        content = hash_file(negatives)
        manifest = {"fingerprint": str(number), "content": {"xxh3": content},
                    "stats": {"checkpoint_step": 10 * number}}  # fmt: skip
        (folder / "negatives.jsonl.manifest.json").write_text(json.dumps(manifest))
    run.publish(3, 30, run.generation(3).path)
    return run


def taken(run, step, logged, until):
    """The generation of each batch from `step` on, where reading takes no time."""
    watcher, number = watch_generations(run, step, logged, lambda source: source.generation, WORLD,
                                  Silent())  # fmt: skip
    found = {}
    for at in range(step, until):
        watcher.ready(at)
        if watcher._thread is not None:
            watcher._thread.join()
        ready = watcher.ready(at)
        number = watcher.take(ready) if ready > number else number
        found[at] = number
    return found


def test_switches_are_repeated_up_to_the_last_logged_step(run):
    for step, generation in ((0, 1), (12, 2)):
        run.note_switch(step, generation)
    found = taken(run, step=10, logged=15, until=20)
    assert [found[step] for step in range(10, 15)] == [1, 1, 2, 2, 2]
    assert found[19] == 3


def test_a_switch_whose_batch_was_not_logged_is_repeated_at_its_step(run):
    """The ledger comes first: a kill between the two leaves a switch behind the last line."""
    for step, generation in ((0, 1), (12, 2)):
        run.note_switch(step, generation)
    for logged in (11, 12):
        found = taken(run, step=10, logged=logged, until=16)
        assert [found[step] for step in range(10, 13)] == [1, 1, 2]
        assert found[15] == 3


def test_a_new_segment_drops_switches_beyond_its_state(run):
    for step, generation in ((0, 1), (12, 2)):
        run.note_switch(step, generation)
    new_segment(run, SegmentInput(None, FOLLOW, None, None), 10)  # there is no state: from step 0
    assert read_ledger(run.switches) == [{"step": 0, "generation": 1}]


def test_negatives_that_were_changed_are_not_trained_on(run):
    path = run.generation(2).path / "negatives.jsonl"
    assert segment_input(run, path).fingerprint == "2"
    path.write_text("{}\n")
    with pytest.raises(BadInput, match="differs from its manifest"):
        segment_input(run, path)
