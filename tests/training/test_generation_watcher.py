"""Watching generations: broken ones, ranks that have read different ones, a stop while waiting, and
the replay of a resumed run."""

import json
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from ance_cli import errors
from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.errors import BadInput, ResourceExhausted, Stopped
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.ledgers import FOLLOW, read_ledger
from ance_cli.formats.run_folder import RunFolder
from ance_cli.progress import Silent
from ance_cli.training.data import NegativesSnapshot
from ance_cli.training.distributed import World
from ance_cli.training.generation_watcher import GenerationWatcher, watch_generations
from ance_cli.training.segments import SegmentInput, new_segment, segment_input
from tests.training.test_trainer import make


class Published:
    """Generations as they come; those in `broken` cannot be read."""

    def __init__(self, broken=()):
        self.newest = 0
        self.broken = set(broken)
        self.refused = []

    def load(self, number):
        if number in self.broken:
            raise BadInput(f"generation {number} is damaged")
        return f"snapshot {number}"

    def watcher(self, failed=None, switches=None, replay_until=0):
        failed = failed or (lambda number, error: self.refused.append(number))
        return GenerationWatcher(
            lambda: self.newest, self.load, failed, switches or {}, replay_until
        )


def ready(watcher, step=0):
    """What is ready once the background has read what was published."""
    watcher.ready(step)
    if watcher._thread is not None:
        watcher._thread.join()
    return watcher.ready(step)


def test_a_generation_that_cannot_be_read_is_skipped():
    published = Published(broken=[1])
    watcher = published.watcher()
    published.newest = 1
    assert ready(watcher) == 0 and published.refused == [1]
    published.newest = 2
    assert ready(watcher) == 2 and watcher.take(2) == "snapshot 2"


def test_a_disk_too_full_to_log_it_leaves_no_traceback(monkeypatch):
    def failed(number, error):
        raise ResourceExhausted("events.jsonl: no room left on the disk")

    strays = []
    monkeypatch.setattr(threading, "excepthook", strays.append)
    published = Published(broken=[1])
    published.newest = 1
    assert ready(published.watcher(failed)) == 0
    assert not strays


def test_a_generation_read_while_another_is_taken_is_not_lost():
    published = Published()
    watcher = published.watcher()

    def read_the_next():
        published.newest = 2
        watcher.ready(0)
        watcher._thread.join()

    meanwhile = []

    class Compared(int):
        """The number of a generation; while it is compared, something else may happen."""

        def __gt__(self, other):
            while meanwhile:
                meanwhile.pop()()
            return int(self) > other

        def __le__(self, other):
            return not self > other

    published.newest = Compared(1)
    assert ready(watcher) == 1
    meanwhile.append(read_the_next)
    watcher.take(1)
    assert watcher.ready(0) == 2


def test_ranks_take_only_what_every_one_of_them_has_read(checkpoint, tmp_path):
    """The other rank has read generation 2. This one could not, and has read 3: the smaller of
    their newest cannot be read here, and training continues with 1 until both have read 3."""
    published = Published(broken=[2])
    watcher = published.watcher()
    for published.newest in (2, 3):
        ready(watcher)
    trainer = make(checkpoint, tmp_path, TrainConfig(batch_size=4, total_steps=4), 4)
    snapshot = NegativesSnapshot(trainer.snapshot.stream, trainer.snapshot.passages, 3, 0)
    watcher._loaded[3] = snapshot
    theirs = [2, True]  # the newest that the other rank has read, and whether it has that one
    trainer.world = SimpleNamespace(
        is_main=True, all_reduce_min=lambda ours: min(ours, theirs.pop(0))
    )
    trainer._follow(watcher, [], Silent())
    assert trainer.snapshot.generation == 1
    theirs += [3, True]
    trainer._follow(watcher, [], Silent())
    assert trainer.snapshot is snapshot and not theirs


def test_a_replayed_generation_is_read_at_once():
    published = Published()
    watcher = published.watcher(switches={3: 2}, replay_until=5)
    assert [watcher.ready(step) for step in (2, 3, 4)] == [0, 2, 0]
    assert watcher.has(2, 3) and not watcher.has(2, 5)
    assert watcher.take(2) == "snapshot 2"


def test_a_stop_while_waiting_takes_no_step_on_negatives_that_are_too_old(checkpoint, tmp_path):
    """Two steps are within --max-staleness; the signal comes while it waits before the third."""
    config = TrainConfig(lr=1e-3, batch_size=4, total_steps=4)
    losses, kept, warnings = [], [], []

    def published():
        if len(losses) == 2:
            errors._on_signal(signal.SIGTERM, None)
        return 0

    trainer = make(checkpoint, tmp_path, config, 4, losses=losses)
    trainer.segment = SegmentConfig(steps=4, log_every=1, checkpoint_every=2, max_staleness=2)
    trainer.watcher = GenerationWatcher(published, lambda number: None, lambda *_: None, {}, 0)
    trainer.output.save_state = lambda t: kept.append(t.step)
    reporter = Silent()
    reporter.warn = warnings.append
    with pytest.raises(Stopped) as stop:
        trainer.run(reporter, 0)
    assert stop.value.exit_code == 143
    assert [step for step, *_ in losses] == [1, 2] and kept[-1] == 2
    assert warnings == ["the state after step 2 is saved"]


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
