"""Search in a cluster whose Ray is a stand-in: which actors there are, what each is asked, and what
a lost one costs. `tests/encoding/test_ray_workers.py` searches with Ray itself."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem
from ance_cli.formats.embeddings import VECTORS, Embeddings
from ance_cli.models.ray_cluster import Cluster
from ance_cli.progress import Silent
from ance_cli.retrieval import exact, ray_search, top_k
from ance_cli.retrieval.exact import exact_top_docs
from ance_cli.retrieval.ray_search import _slices, search_in_cluster

DEPTH = 10


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class RayActorError(RayError):
    pass


class Stream:
    """What an actor's generator returns to the driver: each item is computed when it is asked
    for."""

    def __init__(self, actor, messages):
        self.actor, self.messages, self.is_over = actor, messages, False

    def __next__(self):
        if self.is_over:
            raise StopIteration
        if self.actor.dies_before == self.actor.sent:
            self.is_over = True
            return RayActorError("The actor died\nbecause of this and that")
        try:
            message = next(self.messages)
        except StopIteration:
            self.is_over = True
            raise
        except Exception as error:
            self.is_over = True
            return RayTaskError(error)
        self.actor.sent += 1
        return message


class Actor:
    def __init__(self, made, dies_before, is_placed):
        self.made, self.dies_before, self.is_placed = made, dies_before, is_placed
        self.sent = self.killed = 0
        self.calls = []

    def __getattr__(self, method):
        return Method(self, method)


class Method:
    def __init__(self, actor, name, options=None):
        self.actor, self.name, self.given = actor, name, options

    def options(self, **options):
        return Method(self.actor, self.name, options)

    def remote(self, *arguments):
        assert self.given["num_returns"] == "streaming"
        self.actor.calls.append((self.name, *arguments))
        return Stream(self.actor, getattr(self.actor.made, self.name)(*arguments))


class Ray:
    """Takes the place of the module: actors run in this process, in turn.

    `dies_before` maps an actor's number to how many messages it sends before it is lost; `unplaced`
    are actors that no node has room for.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, dies_before=None, unplaced=()):
        self.dies_before, self.unplaced = dies_before or {}, unplaced
        self.kinds, self.actors, self.turn = [], [], 0
        self.largest = 0

    def remote(self, kind):
        return SimpleNamespace(options=lambda **options: self._kind(kind, options))

    def _kind(self, kind, options):
        self.kinds.append((kind, options))

        def made(*arguments):
            number = len(self.actors) + 1
            self.actors.append(
                Actor(kind(*arguments), self.dies_before.get(number), number not in self.unplaced)
            )
            return self.actors[-1]

        return SimpleNamespace(remote=made)

    def wait(self, streams, timeout):
        ready = [stream for stream in streams if stream.actor.is_placed]
        assert ready, "the driver waits for actors that are never placed"
        self.turn += 1
        done = ready[self.turn % len(ready)]
        return [done], [stream for stream in streams if stream is not done]

    def get(self, ref):
        if isinstance(ref, RayError):
            raise ref
        if isinstance(ref, tuple):
            self.largest = max(self.largest, sum(part.nbytes for part in ref[1:]))
        return ref

    def kill(self, actor):
        actor.killed += 1

    @property
    def searches(self):
        return [call for actor in self.actors for call in actor.calls if call[0] == "search"]


class Heard(Silent):
    def __init__(self):
        self.texts, self.rows = [], 0

    def say(self, text):
        self.texts.append(text)

    @contextmanager
    def task(self, name, total, unit, done=0):
        assert (name, unit) == ("searching", "row")
        yield self
        assert self.rows == total, "each row once, whatever is lost"

    def advance(self, amount=1):
        self.rows += amount
        assert self.rows >= 0


@pytest.fixture
def devices(monkeypatch):
    """The devices that are searched on; the CPU does the work of a GPU."""
    asked, real = [], exact.search_docs

    def search_docs(xq, embeddings, out, devices=(), engine="auto", say=None):
        asked.extend(map(str, devices))
        yield from real(xq, embeddings, out, [torch.device("cpu")], engine, say)

    monkeypatch.setattr(exact, "search_docs", search_docs)
    return asked


@pytest.fixture
def world(embed, monkeypatch, devices):
    """250 queries in batches of 16, and a corpus in several blocks."""
    monkeypatch.setattr(top_k, "BATCH", 16)
    monkeypatch.setattr("ance_cli.retrieval.chunks.CHUNK_ROWS", 30)
    rng = np.random.default_rng(0)
    xq, xb = (rng.standard_normal((rows, 64)).astype(np.float32) for rows in (250, 100))
    return xq, embed(xb, block_docs=10)


def search(monkeypatch, world, cluster, reporter=None, **ray):
    """What a search finds, and the Ray that it was done in."""
    stand_in = Ray(**ray)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    found = search_in_cluster(cluster, *world, DEPTH, reporter or Silent())
    return found, stand_in


def check_same(found, world):
    for part, expected in zip(found, exact_top_docs(*world, DEPTH), strict=True):
        assert part.dtype == expected.dtype and part.tobytes() == expected.tobytes()


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("num_queries", "workers", "device", "count"),
    [
        (500_000, 8, "cuda:0", 8),  # each reads the corpus once
        (500_000, 1, "cuda:0", 1),
        (10_000_000, 1, "cuda:0", 4),  # 4 GB hold fewer queries than a slice
        (500_000, 8, "cpu", 24),
        (500_000, 4, "cpu", 16),
        (100_000, 8, "cpu", 8),
        (20_000, 8, "cuda:0", 5),  # five batches
        (4_096, 8, "cpu", 1),
        (1, 3, "cpu", 1),
        (0, 3, "cpu", 1),
    ],
)
def test_how_many_slices(num_queries, workers, device, count):
    slices = _slices(num_queries, Cluster(workers, device, 4))
    assert len(slices) == count
    assert [query for part in slices for query in part] == list(range(num_queries))
    assert all(part.start % 4096 == 0 for part in slices)
    assert max(map(len, slices)) - min(map(len, slices)) < 2 * 4096


# ---------------------------------------------------------------- actors


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_one_actor_per_gpu_searches_the_whole_corpus_once(monkeypatch, world, devices, workers):
    reporter = Heard()
    found, ray = search(monkeypatch, world, Cluster(workers, "cuda:0", 4), reporter)
    check_same(found, world)
    assert ray.kinds == [(ray_search._Searcher, {"num_cpus": 4, "num_gpus": 1})]
    assert len(ray.actors) == workers
    assert [len(actor.calls) for actor in ray.actors] == [2] * workers  # placed, search
    assert sum(len(xq) for _, xq in ray.searches) == 250
    assert devices == ["cuda:0"] * workers
    assert all(actor.killed == 1 for actor in ray.actors), "their GPUs are free for others"
    assert reporter.texts == []


def test_workers_on_cpus_take_one_slice_after_the_other(monkeypatch, world):
    monkeypatch.setitem(ray_search._WORTH_READING, "cpu", 32)
    found, ray = search(monkeypatch, world, Cluster(2, "cpu", 3))
    check_same(found, world)
    assert ray.kinds == [(ray_search._Searcher, {"num_cpus": 3, "num_gpus": 0})]
    assert len(ray.actors) == 2 and len(ray.searches) == 6


def test_results_come_in_pieces(monkeypatch, world):
    monkeypatch.setattr(ray_search, "_PIECE_BYTES", 7 * 8 * DEPTH)
    found, ray = search(monkeypatch, world, Cluster(2, "cpu", 1))
    check_same(found, world)
    assert ray.largest == 7 * 8 * DEPTH


def test_what_a_worker_says_is_passed_on(monkeypatch, world):
    def runs_out(self, q, *rest):
        if len(q) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return best(self, q, *rest)

    best = top_k.FaissEngine.best
    monkeypatch.setattr(top_k.FaissEngine, "best", runs_out)
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    reporter = Heard()
    found, _ = search(monkeypatch, world, Cluster(2, "cpu", 1), reporter)
    check_same(found, world)
    said = "memory ran out: searching smaller batches of queries"
    assert sorted(reporter.texts) == [f"worker {n} (cpu) on node1: {said}" for n in (1, 2)]


def test_fewer_queries_than_workers_and_fewer_documents_than_the_depth(monkeypatch, world, embed):
    xq, embeddings = world[0][:3], embed(world[0][:4])
    (D, docs), ray = search(monkeypatch, (xq, embeddings), Cluster(5, "cpu", 1))
    assert docs.shape == D.shape == (3, 4)
    assert docs.tobytes() == exact_top_docs(xq, embeddings, 4)[1].tobytes()
    assert len(ray.actors) == 5 and len(ray.searches) == 1
    (D, docs), _ = search(monkeypatch, (xq[:0], embeddings), Cluster(2, "cpu", 1))
    assert docs.shape == D.shape == (0, 4)


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("moment", [0, 1, 2, 4, 6, 8])
def test_another_worker_takes_over_the_slice_of_a_lost_one(monkeypatch, world, moment):
    """It sends its host, four numbers of rows and three pieces of its results."""
    monkeypatch.setattr(ray_search, "_PIECE_BYTES", 30 * 8 * DEPTH)
    reporter = Heard()
    cluster = Cluster(3, "cpu", 1)
    found, ray = search(monkeypatch, world, cluster, reporter, dies_before={2: moment})
    check_same(found, world)
    assert ray.actors[1].sent == moment
    (said,) = reporter.texts
    assert (said.startswith("worker 2 (cpu)") and " on " in said) or moment == 0
    assert said.endswith("ended with its process or its node; 2 others continue")
    assert len(ray.actors) == 3 and len(ray.searches) == (3 if moment < 2 else 4)
    assert ray.actors[1].killed, "it may only be out of reach"


def test_the_last_worker_searches_everything(monkeypatch, world):
    cluster, reporter = Cluster(4, "cpu", 1), Heard()
    dies_before = {1: 1, 3: 3, 4: 5}
    found, ray = search(monkeypatch, world, cluster, reporter, dies_before=dies_before)
    check_same(found, world)
    assert len(reporter.texts) == 3
    assert sum(call[0] == "search" for call in ray.actors[1].calls) == 4


def test_without_workers_the_search_ends(monkeypatch, world):
    with pytest.raises(ResourceExhausted, match="every Ray worker of the search ended") as caught:
        search(monkeypatch, world, Cluster(2, "cpu", 1), dies_before={1: 2, 2: 3})
    assert caught.value.what.endswith("(The actor died)") and "ray status" in caught.value.hint
    assert all(actor.killed for actor in sys.modules["ray"].actors)


def test_workers_that_ray_cannot_place_hinder_no_others(monkeypatch, world):
    cluster, reporter = Cluster(3, "cpu", 1), Heard()
    found, ray = search(monkeypatch, world, cluster, reporter, unplaced=(1, 3))
    check_same(found, world)
    assert len(ray.searches) == 3 and all(actor.killed for actor in ray.actors)


def test_what_a_worker_finds_wrong_is_raised(monkeypatch, world):
    xq, embeddings = world
    matrix = embeddings.folder / VECTORS
    damaged = bytearray(matrix.read_bytes())
    damaged[-1] ^= 1
    matrix.write_bytes(damaged)
    again = xq, Embeddings(embeddings.folder)
    with pytest.raises(BadInput, match="block 9 .* is damaged"):
        search(monkeypatch, again, Cluster(2, "cpu", 1))
    assert all(actor.killed for actor in sys.modules["ray"].actors)


def test_a_node_without_the_embeddings_is_named(monkeypatch, world):
    monkeypatch.setattr("os.path.isdir", lambda path: False)
    with pytest.raises(UsageProblem, match="does not exist on"):
        search(monkeypatch, world, Cluster(2, "cpu", 1))


def test_a_bug_is_no_loss(monkeypatch, world):
    def search_docs(*_, say):
        raise KeyError("a bug")
        yield

    monkeypatch.setattr(exact, "search_docs", search_docs)
    with pytest.raises(RayTaskError, match="a bug"):
        search(monkeypatch, world, Cluster(2, "cpu", 1))
