"""What is timed, by a clock that only the retriever moves."""

import numpy as np
import pytest

from ance_cli.progress import Silent
from ance_cli.retrieval import latency


class Clocked:
    """A retriever that encodes in 2 ms a query and searches in 3 ms and 1 ms a query."""

    def __init__(self, clock):
        self.clock, self.asked = clock, []

    def encode_queries(self, texts, reporter):
        self.clock.now += 0.002 * len(texts)
        self.asked.append(list(texts))
        return np.zeros((len(texts), 4), np.float32)

    def search(self, xq, depth, reporter):
        self.clock.now += 0.003 + 0.001 * len(xq)
        return np.zeros((len(xq), depth), np.float32), np.ones((len(xq), depth), np.int32)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def test_each_query_is_timed_by_itself_and_then_all_together(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(latency, "WARM_UP", 2)
    retriever = Clocked(clock)
    with Silent().task("t", 4, "query") as bar:
        found = latency.measure(retriever, ["a", "b", "c", "d"], 5, bar)
    assert retriever.asked == [["a"], ["b"], ["a"], ["b"], ["c"], ["d"], ["a", "b", "c", "d"]]
    assert found.encode == pytest.approx([2.0] * 4)
    assert found.search == pytest.approx([4.0] * 4)
    assert found.batched == pytest.approx((8 + 3 + 4) / 4)
    assert found.found.shape == (4, 5)


def test_percentiles():
    assert latency.percentiles(np.arange(101.0)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
