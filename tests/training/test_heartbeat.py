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
    assert SECONDS * (MISSED + 2) < 60


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
    lost, goes_on = [], threading.Event()

    class Stopped(threading.Event):
        """Both threads of a rank come to a stop here, as under SIGSTOP."""

        def wait(self, timeout=None):
            goes_on.wait()
            return super().wait(timeout)

    goes_on.set()
    store.set("ance-heartbeat-1", "0")
    beating = Heartbeat(store, 0, 2, lost.append, QUICK)
    other = Heartbeat(store, 1, 2, lost.append, QUICK)
    beating._stopping, other._stopping = Stopped(), Stopped()
    beating.start()
    other.start()
    goes_on.clear()
    threading.Event().wait(QUICK * MISSED * 3)
    goes_on.set()
    before = int(store.get("ance-heartbeat-1"))
    while int(store.get("ance-heartbeat-1")) < before + 2 * MISSED and not lost:
        threading.Event().wait(QUICK)
    for each in (beating, other):
        each.stop()
    assert not lost


def test_a_store_that_stands_still_is_noticed(store):
    """The machine of rank 0 lost its power, or its process was stopped: nothing is closed. A call
    does not return then, although the store has a timeout."""
    lost, done, never = [], threading.Event(), threading.Event()

    def on_lost(what):
        lost.append(what)
        done.set()

    class Still:
        def set(self, *_):
            pass

        def multi_get(self, _):
            never.wait()

    store.set("ance-heartbeat-0", "0")
    beating = Heartbeat(store, 1, 2, on_lost, QUICK)
    beating._store = Still()
    beating.start()
    assert done.wait(30)
    assert lost == [f"the machine of rank 0 has not answered for {QUICK * MISSED:g} s"]
    never.set()
    beating.stop()


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
