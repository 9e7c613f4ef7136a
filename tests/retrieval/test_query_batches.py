"""Batches of queries, and what happens to them when memory runs out."""

import threading

import pytest
import torch

from ance_cli.errors import ResourceExhausted
from ance_cli.retrieval.query_batches import QueryBatches

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "Error in allocMemory: Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc "
        "fail type TemporaryMemoryOverflow dev 0 space Device stream 0x1 size 80 bytes (cudaMalloc "
        "error out of memory [2])"
    ),
]


class Searched:
    """A search that takes at most `fits` queries; remembers the slices that it took."""

    def __init__(self, fits, error=ERRORS[0]):
        self.fits, self.error, self.done, self.tried = fits, error, [], 0

    def __call__(self, part):
        self.tried += 1
        if part.stop - part.start > self.fits:
            raise self.error
        self.done.append((part.start, part.stop))


def test_slices_cover_the_queries_in_order():
    search, said = Searched(fits=100), []
    QueryBatches(said.append).search(11, 4, search)
    assert search.done == [(0, 4), (4, 8), (8, 11)] and said == []
    QueryBatches().search(0, 4, search)
    assert len(search.done) == 3


@pytest.mark.parametrize("error", ERRORS, ids=["torch", "faiss"])
def test_where_memory_runs_out_batches_are_halved_from_then_on(error):
    search, said = Searched(3, error), []
    batches = QueryBatches(said.append)
    batches.search(20, 10, search)
    assert search.done[:4] == [(0, 3), (3, 5), (5, 8), (8, 10)]
    assert search.done[4:] == [(place, place + 2) for place in range(10, 20, 2)]
    assert said == ["memory ran out: searching smaller batches of queries"]
    search.tried = 0
    batches.search(6, 10, search)
    assert search.tried == 3 and len(said) == 1, "the limit stays, and it is not said again"


def test_one_query_that_does_not_fit_ends_it():
    with pytest.raises(ResourceExhausted) as caught:
        QueryBatches().search(5, 4, Searched(0))
    assert caught.value.what == "the search of a single query does not fit in memory"
    assert caught.value.hint == "free the device, or search on the CPU: --gpus none"


def test_another_error_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        QueryBatches().search(5, 4, Searched(0, RuntimeError("shapes do not match")))


def test_several_devices_say_it_once():
    said = []
    batches = QueryBatches(said.append)
    threads = [threading.Thread(target=batches.search, args=(16, 8, Searched(2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
