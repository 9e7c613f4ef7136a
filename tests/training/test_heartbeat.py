"""A rank that stands still is noticed by the others, and only such a rank."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from ance_cli.training.heartbeat import MISSED, SECONDS, Heartbeat

QUICK = 0.02


@pytest.fixture
def store():
    return TCPStore("localhost", 0, is_master=True, timeout=timedelta(seconds=30))


def ranks(store, size, lost):
    """One heartbeat for each rank; `lost` receives (rank that says it, what it says)."""
    for rank in range(size):
        store.set(f"ance-heartbeat-{rank}", "0")  # as if each rank had come
    return [
        Heartbeat(store, rank, size, lambda what, rank=rank: lost.append((rank, what)), QUICK)
        for rank in range(size)
    ]


def test_a_minute_is_enough_to_notice():
    assert SECONDS * (MISSED + 1) < 60


def test_ranks_that_count_are_left_alone(store):
    lost = []
    beating = ranks(store, 3, lost)
    for heartbeat in beating:
        heartbeat.start()
    before = int(store.get("ance-heartbeat-2"))
    threading.Event().wait(QUICK * MISSED * 5)
    for heartbeat in beating:
        heartbeat.stop()
    assert not lost and int(store.get("ance-heartbeat-2")) > before + MISSED


def test_a_rank_that_stands_still_is_named_once_by_each_other(store):
    lost, told = [], threading.Event()
    beating = ranks(store, 3, lost)
    for heartbeat in beating:
        heartbeat.start()
    beating[1].stop()  # stands still, with all its connections open
    while len(lost) < 2:
        assert not told.wait(0.01)
    for heartbeat in (beating[0], beating[2]):
        heartbeat.stop()
    assert sorted(rank for rank, _ in lost) == [0, 2]
    assert {what for _, what in lost} == {
        f"rank 1 has not answered for {QUICK * MISSED:g} s: its process or its machine stopped"
    }


def test_ranks_that_were_stopped_together_go_on(store):
    """A rank counts its own looks, not the time."""
    lost, pause = [], threading.Event()

    class Paused:
        """The other rank's counter, which does not move while this rank is stopped too."""

        looks = 0

        def set(self, *_):
            pass

        def multi_get(self, _):
            self.looks += 1
            if self.looks == 2:
                pause.wait(QUICK * MISSED * 3)
            return [str(max(self.looks, 2)).encode()]

    store.set("ance-heartbeat-1", "0")
    beating = Heartbeat(store, 0, 2, lambda what: lost.append(what), QUICK)
    beating._store = Paused()
    beating.start()
    while beating._store.looks < 2 + 2 * MISSED:
        pause.wait(0.01)
    beating.stop()
    assert not lost


def test_the_store_is_lost_with_the_machine_of_rank_0(store):
    lost, done = [], threading.Event()

    def on_lost(what):
        lost.append(what)
        done.set()

    store.set("ance-heartbeat-1", "0")
    beating = Heartbeat(store, 0, 2, on_lost, QUICK)

    class Gone:
        def set(self, *_):
            raise RuntimeError("Connection reset by peer")

    beating._store = Gone()
    beating.start()
    assert done.wait(30) and lost == ["the machine of rank 0 does not answer any more"]
    beating.stop()
