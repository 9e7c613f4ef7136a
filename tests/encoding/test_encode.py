"""Blocks by any process: worker processes, shards, kills at any point, the same bytes."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ance_cli.call import Call
from ance_cli.config import EncodeConfig
from ance_cli.encoding import tokenize, workers
from ance_cli.encoding.encode import _shard_lease, encode, parse_shard
from ance_cli.errors import BadInput, Busy, ResourceExhausted, UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.atomic import partial_name
from ance_cli.formats.dataset import locate
from ance_cli.formats.embeddings import DONE, Embeddings
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import load_dual, save_dual
from ance_cli.models.tokens import Tokenizer
from ance_cli.progress import Silent

FILES = ("embeddings.npy", "ids.txt", "doc_offsets.npy")
NUM_BLOCKS = 13
TWO_WORKERS = EncodeConfig(gpus="none", cpu_workers=2, dtype="fp32")
ONE = EncodeConfig(gpus="none", dtype="fp32")


@pytest.fixture
def opened(checkpoint, dataset, monkeypatch):
    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 5)
    return Checkpoint(checkpoint), locate(dataset)


@pytest.fixture
def whole(opened, tmp_path):
    """What one process makes in one go."""
    encode(*opened, tmp_path / "whole", ONE)
    return tmp_path / "whole"


def same(one, other):
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes()
    one, other = Embeddings(one), Embeddings(other)
    assert one.manifest["content"] == other.manifest["content"]
    assert one.fingerprint == other.fingerprint


def done_blocks(output):
    path = partial_name(output) / DONE
    return int((np.load(path)["rows"] >= 0).sum()) if path.exists() else 0


class Said(Silent):
    """A reporter that remembers what was said, and how far the bar moved."""

    def __init__(self):
        self.texts, self.amount, self.total = [], 0, 0

    def say(self, text):
        self.texts.append(text)

    def advance(self, amount=1):
        self.amount += amount

    @contextmanager
    def task(self, name, total, unit, done=0):
        self.amount, self.total = 0, total
        yield self


# ---------------------------------------------------------------- one process


def test_the_summary_tells_tokens_padding_and_how_much_of_the_machine_was_used(
    opened, tmp_path, monkeypatch
):
    from ance_cli.encoding import blocks

    monkeypatch.setattr(blocks, "_CEILING_AFTER_SECONDS", 0.0)
    said = Said()
    found = encode(*opened, tmp_path / "emb", ONE, call=Call(reporter=said))
    cache = tokenize.corpus_tokens(*opened)
    assert found["tokens"] == said.amount == said.total == cache.num_tokens
    assert 0 <= found["padding"] < 1 and found["tokens_per_s"] > 0
    assert 0 < found["mfu"] < 1.5


def test_queries_leave_no_tokens_behind(opened, tmp_path):
    found = encode(*opened, tmp_path / "q", EncodeConfig(side="query", gpus="none"))
    assert found["docs"] == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "q"]


def test_vectors_that_are_not_finite_name_their_document(opened, tmp_path):
    checkpoint, dataset = opened
    dual = load_dual(checkpoint)
    embeddings = dual.query.backbone.get_input_embeddings()
    word = Tokenizer(checkpoint)(["word17"], "passage").ids[1]
    embeddings.weight.data[int(word)] = float("nan")
    save_dual(dual, checkpoint.settings, tmp_path / "broken")
    with pytest.raises(BadInput, match=r"the vector of 'd17' and 0 others are not finite"):
        encode(Checkpoint(tmp_path / "broken"), dataset, tmp_path / "emb", ONE)


KILLED = """
import os, sys, time
from pathlib import Path
from ance_cli.config import EncodeConfig
from ance_cli.formats.dataset import locate
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.inference import InferenceEngine
from ance_cli.encoding import encode, tokenize
tokenize.BLOCK_DOCS = int(sys.argv[6])
real = InferenceEngine.encode
def slowly(self, rows, **listeners):
    time.sleep(0.3)
    return real(self, rows, **listeners)
InferenceEngine.encode = slowly
config = EncodeConfig(
    gpus="none", dtype="fp32", cpu_workers=int(sys.argv[4]), output_dtype=sys.argv[5]
)
encode.encode(Checkpoint(Path(sys.argv[1])), locate(Path(sys.argv[2])), Path(sys.argv[3]), config)
"""


def started(opened, output, workers, dtype="float16", block_docs=5):
    arguments = [opened[0].path, opened[1].corpus.parent, output, workers, dtype, block_docs]
    return subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)])


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.01)


def test_kill_9_loses_the_blocks_in_flight_at_most(opened, whole, tmp_path, monkeypatch):
    output = tmp_path / "cut"
    process = started(opened, output, 1)
    wait_for(lambda: done_blocks(output) >= 3)
    process.kill()
    process.wait()
    done = done_blocks(output)
    assert 3 <= done < NUM_BLOCKS and not output.exists()
    blocks = []
    from ance_cli.encoding.blocks import BlockEncoder

    real = BlockEncoder._encode
    monkeypatch.setattr(
        BlockEncoder,
        "_encode",
        lambda self, block, *rows: blocks.append(block) or real(self, block, *rows),
    )
    encode(*opened, output, ONE)
    assert len(blocks) == NUM_BLOCKS - done
    same(output, whole)


# ---------------------------------------------------------------- rounded vectors


def rounded(dtype):
    return EncodeConfig(gpus="none", dtype="fp32", output_dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_the_summary_says_what_rounding_keeps(opened, tmp_path, dtype, monkeypatch):
    """Recall@10 of the first block's rows among each other, whichever call encoded them."""
    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 30)
    found = encode(*opened, tmp_path / "emb", rounded(dtype))
    encode(*opened, tmp_path / "floats", rounded("float32"))
    exact = np.load(tmp_path / "floats" / "embeddings.npy")[:30]
    kept = Embeddings(tmp_path / "emb").rows(np.arange(30))
    shares = []
    for place, query in enumerate(exact):
        best = [
            [row for row in np.argsort(-(rows @ query), kind="stable").tolist() if row != place]
            for rows in (exact, kept)
        ]
        shares.append(len({*best[0][:10]} & {*best[1][:10]}) / 10)
    assert found["recall_at_10_of_float32"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert found["recall_at_10_of_float32"] < 1
    for number in (2, 1):  # the call that encodes the first block publishes; then the other one
        encode(*opened, tmp_path / "first", rounded(dtype), shard=(number, 2))
        last = encode(*opened, tmp_path / "last", rounded(dtype), shard=(3 - number, 2))
    assert last["recall_at_10_of_float32"] == found["recall_at_10_of_float32"]
    for name in ("first", "last"):
        same(tmp_path / name, tmp_path / "emb")
        again = encode(*opened, tmp_path / name, rounded(dtype))
        assert again["up_to_date"]
        assert again["recall_at_10_of_float32"] == found["recall_at_10_of_float32"]


def test_floats_have_no_recall(opened, tmp_path):
    for dtype in ("float16", "float32"):
        assert "recall_at_10_of_float32" not in encode(*opened, tmp_path / dtype, rounded(dtype))


def test_kill_9_changes_neither_the_bits_nor_their_recall(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 20)
    expected = encode(*opened, tmp_path / "whole", rounded("binary"))
    process = started(opened, tmp_path / "cut", 1, "binary", block_docs=20)
    wait_for(lambda: done_blocks(tmp_path / "cut") >= 1)
    process.kill()
    process.wait()
    assert 1 <= done_blocks(tmp_path / "cut") < 4
    found = encode(*opened, tmp_path / "cut", rounded("binary"))
    same(tmp_path / "cut", tmp_path / "whole")
    assert found["recall_at_10_of_float32"] == expected["recall_at_10_of_float32"] < 0.95


# ---------------------------------------------------------------- worker processes


@pytest.fixture
def at_assignment(monkeypatch):
    """Send a signal to worker processes when their `nth` block is assigned.

    No block is assigned before every worker is ready, so that each gets a block.
    """

    def arrange(number, nth, numbers=(1,)):
        real, given = workers._Process.assign, {}

        def assign(self, block):
            real(self, block)
            given[self.name] = given.get(self.name, 0) + 1
            if given[self.name] == nth and int(self.name.split()[1]) in numbers:
                os.kill(self.process.pid, number)

        assign_next, complete = workers._Pool._assign, []

        def assign_to_all(self):
            if complete or all(worker.is_waiting for worker in self.workers):
                complete.append(True)
                assign_next(self)

        monkeypatch.setattr(workers._Process, "assign", assign)
        monkeypatch.setattr(workers._Pool, "_assign", assign_to_all)

    return arrange


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_no_block(opened, whole, tmp_path, at_assignment):
    at_assignment(signal.SIGKILL, 1)
    said = Said()
    encode(*opened, tmp_path / "emb", TWO_WORKERS, call=Call(reporter=said))
    same(tmp_path / "emb", whole)
    assert "worker 1 (cpu) ended by SIGKILL; 1 others continue" in said.texts
    assert said.amount == said.total


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_block_given_to_another(
    opened, whole, tmp_path, at_assignment, monkeypatch
):
    monkeypatch.setattr(workers, "_OVERDUE_AT_LEAST_SECONDS", 1.0)
    at_assignment(signal.SIGSTOP, 1)
    said = Said()
    encode(*opened, tmp_path / "emb", TWO_WORKERS, call=Call(reporter=said))
    same(tmp_path / "emb", whole)
    assert "worker 1 (cpu) is overdue and is stopped" in said.texts


@pytest.mark.long
@pytest.mark.slow
def test_when_every_worker_died_the_same_command_goes_on(
    opened, whole, tmp_path, at_assignment, monkeypatch
):
    with monkeypatch.context():
        at_assignment(signal.SIGKILL, 3, numbers=(1, 2))
        with pytest.raises(ResourceExhausted) as caught:
            encode(*opened, tmp_path / "emb", TWO_WORKERS)
    left = NUM_BLOCKS - done_blocks(tmp_path / "emb")
    said, told, rest = caught.value.what.rsplit(" ", 4)[0], *caught.value.what.split()[-4:-2]
    assert said + rest == (
        "every worker process ended: worker 1 (cpu) by SIGKILL, worker 2 (cpu) by SIGKILL;blocks"
    )
    assert left <= int(told) <= left + 2  # a worker may die before it reports a finished block
    assert not (tmp_path / "emb").exists() and 0 < left < NUM_BLOCKS
    encode(*opened, tmp_path / "emb", ONE)
    same(tmp_path / "emb", whole)


@pytest.mark.long
@pytest.mark.slow
def test_what_a_worker_finds_wrong_is_told_as_by_one_process(opened, tmp_path):
    checkpoint, dataset = opened
    dual = load_dual(checkpoint)
    dual.query.chain[2].linear.weight.data.fill_(float("nan"))
    save_dual(dual, checkpoint.settings, tmp_path / "broken")
    with pytest.raises(BadInput, match="are not finite") as caught:
        encode(Checkpoint(tmp_path / "broken"), dataset, tmp_path / "emb", TWO_WORKERS)
    assert "use an earlier one" in caught.value.hint


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_their_parent(opened, whole, tmp_path):
    output = tmp_path / "cut"
    process = started(opened, output, 2)
    wait_for(lambda: done_blocks(output) >= 2)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as handle:
        workers = [int(pid) for pid in handle.read().split()]
    process.kill()
    process.wait()
    assert len(workers) == 2
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/fd") and alive(pid) for pid in workers))
    encode(*opened, output, ONE)
    same(output, whole)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_the_last_shard_publishes(opened, whole, tmp_path, order):
    output = tmp_path / "emb"
    for nth, number in enumerate(order):
        found = encode(*opened, output, ONE, shard=(number, 3))
        assert output.exists() == (nth == 2)
        if nth < 2:
            assert found["blocks_left"] == NUM_BLOCKS - done_blocks(output)
            assert found["blocks_encoded"] == len(range(number - 1, NUM_BLOCKS, 3))
    same(output, whole)
    assert encode(*opened, output, ONE, shard=(1, 3))["up_to_date"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "emb", "whole"]


def test_shards_at_once(opened, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.01)
    output, problems = tmp_path / "emb", []

    def run(number):
        try:
            encode(*opened, output, ONE, shard=(number, 4))
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert problems == []
    same(output, whole)


def test_a_call_without_shard_does_the_rest(opened, whole, tmp_path):
    output = tmp_path / "emb"
    encode(*opened, output, ONE, shard=(2, 2))
    said = Said()
    encode(*opened, output, ONE, call=Call(reporter=said))
    assert "6 of 13 blocks are done already" in said.texts
    same(output, whole)


def test_one_shard_is_encoded_once_at_a_time(opened, tmp_path):
    output = tmp_path / "emb"
    with lease.hold(_shard_lease(output, (1, 2)), "a shard"):
        with pytest.raises(Busy):
            encode(*opened, output, ONE, shard=(1, 2))
        with pytest.raises(Busy):
            encode(*opened, output, ONE)  # it would publish under the shard's feet
        encode(*opened, output, ONE, shard=(2, 2))
    assert encode(*opened, output, ONE, shard=(1, 2))["rows"] == 64


def test_shards_and_force(opened, tmp_path):
    with pytest.raises(UsageProblem, match="each shard would remove the blocks of the others"):
        encode(*opened, tmp_path / "emb", ONE, shard=(1, 2), call=Call(force=True))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_shard(text):
    with pytest.raises(UsageProblem, match="expected I/N"):
        parse_shard(text)
    assert parse_shard("2/8") == (2, 8) and parse_shard(None) is None


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_share_the_blocks(opened, tmp_path):
    encode(*opened, tmp_path / "one", EncodeConfig(gpus="0"))
    encode(*opened, tmp_path / "two", EncodeConfig(gpus="0,1"))
    same(tmp_path / "one", tmp_path / "two")
