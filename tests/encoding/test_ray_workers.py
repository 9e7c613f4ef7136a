"""Encoding and mining in a real Ray on this machine: the same bytes as one process makes, also when
a worker is killed in the middle."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ance_cli.call import Call
from ance_cli.config import ClusterConfig, DriverConfig, EncodeConfig, MineConfig
from ance_cli.encoding import ray_workers, tokenize, workers
from ance_cli.encoding.encode import encode
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.candidates import read_candidates
from ance_cli.formats.dataset import locate
from ance_cli.formats.embeddings import (
    DOC_OFFSETS,
    IDS,
    VECTORS,
    Embeddings,
    EmbeddingsWriter,
)
from ance_cli.formats.plan import Plan
from ance_cli.mining.mine import mine
from ance_cli.mining.mining_job import MiningFiles
from ance_cli.models import ray_cluster
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Silent
from ance_cli.retrieval import ray_search
from ance_cli.retrieval.dense import vector_source
from ance_cli.retrieval.exact import exact_top_docs
from tests.world import make_dataset

ONE = EncodeConfig(gpus="none", dtype="fp32")
HERE = DriverConfig(gpus="none", dtype="fp32")
ON_RAY = DriverConfig(gpus="none", dtype="fp32", ray="local")


@pytest.fixture(scope="module", autouse=True)
def _own_ray():
    """Ray reads these once, when it is imported. The cluster of these tests lets nobody else in,
    and its workers are as urgent as the rest (by default 15 nicer)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


class Said(Silent):
    def __init__(self):
        self.texts = []

    def say(self, text):
        self.texts.append(text)


# ---------------------------------------------------------------- without Ray


def joined(address, gpus="all"):
    with ray_cluster.joined(ClusterConfig(ray=address, gpus=gpus), 1, Silent()):
        raise AssertionError("there is nothing to join")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageProblem, match="--ray local: Ray is not installed here") as caught:
        joined("local")
    assert "pip install 'ance-cli[ray]'" in caught.value.hint


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "http://head:8265", ":1"])
def test_what_is_no_address(address):
    pytest.importorskip("ray")
    with pytest.raises(UsageProblem, match="expected HOST:PORT, auto or local"):
        joined(address)


def test_an_address_that_does_not_answer_is_reported_at_once():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with pytest.raises(UsageProblem, match=f"--ray {address}: no answer"):
        joined(address)


def test_ray_chooses_the_gpus():
    with pytest.raises(UsageProblem, match="Ray decides which GPUs a worker gets"):
        joined("local", "0,1")


def test_an_index_is_not_searched_in_parts(checkpoint, dataset, tmp_path):
    source = vector_source(None, tmp_path / "index")
    with pytest.raises(UsageProblem, match="--ray searches embeddings"):
        mine(Checkpoint(checkpoint), locate(dataset, "train"), source,
             MiningFiles(tmp_path / "n.jsonl"), compute=ON_RAY)  # fmt: skip


def test_folders_that_a_node_does_not_have(tmp_path):
    with pytest.raises(UsageProblem, match="does not exist on"):
        ray_cluster.check_shared(str(tmp_path / "elsewhere"))


# ---------------------------------------------------------------- with it


CLUSTER = """
import ray
found = ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
print(found.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray of two processors on this machine, in a process of its own."""
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().strip()
    process.communicate("\n", timeout=60)


@pytest.fixture
def world(tmp_path, checkpoint, dataset, monkeypatch):
    """A dataset in 13 blocks of 5 documents, and its embeddings by one process."""
    monkeypatch.setattr(tokenize, "BLOCK_DOCS", 5)
    opened = Checkpoint(checkpoint), locate(dataset, "train")
    encode(*opened, tmp_path / "one", ONE)
    return opened


@pytest.mark.long
def test_a_worker_killed_in_the_middle_of_encoding_costs_no_block(
    cluster, world, tmp_path, monkeypatch
):
    """When every worker has a block one of them is killed with its first."""
    assign, send = workers._Pool._assign, ray_workers._Actor.send
    complete, killed = [], []

    def assign_to_all(self):
        if complete or all(worker.is_waiting for worker in self.workers):
            complete.append(True)
            assign(self)

    def send_and_kill(self, block):
        send(self, block)
        if not killed:
            killed.append(block)
            os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(workers._Pool, "_assign", assign_to_all)
    monkeypatch.setattr(ray_workers._Actor, "send", send_and_kill)
    said = Said()
    two = EncodeConfig(gpus="none", dtype="fp32", cpu_workers=2, ray=cluster)
    found = encode(*world, tmp_path / "ray", two, call=Call(reporter=said))
    assert killed == [0] and found["docs"] == 64
    assert said.texts[0] == f"2 workers (cpu) on Ray at {cluster}"
    lost = f"worker 1 (cpu) on {socket.gethostname()} ended with its process or its node"
    assert f"{lost}; 1 others continue" in said.texts
    for name in (VECTORS, IDS, DOC_OFFSETS):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, other = Embeddings(tmp_path / "one"), Embeddings(tmp_path / "ray")
    assert one.fingerprint == other.fingerprint
    assert one.manifest["content"] == other.manifest["content"]
    again = encode(*world, tmp_path / "ray", two)
    assert again["up_to_date"]


@pytest.mark.long
def test_workers_keep_vectors_of_an_earlier_corpus(cluster, world, dataset, tmp_path, monkeypatch):
    """Their working folder is another one than ours."""
    monkeypatch.chdir(tmp_path)
    corpus = dataset / "corpus.jsonl"
    lines = corpus.read_text().replace("river", "comet").splitlines(keepends=True)
    corpus.write_text("".join(reversed(lines[9:])))
    shutil.copytree("one", "ray")
    encode(*world, Path("one"), ONE, append=True)
    two = EncodeConfig(gpus="none", dtype="fp32", cpu_workers=2, ray=cluster)
    found = encode(*world, Path("ray"), two, append=True)
    assert (found["kept"], found["changed"], found["removed"]) == (48, 7, 9)
    one, other = Embeddings(tmp_path / "one"), Embeddings(tmp_path / "ray")
    assert one.manifest["content"] == other.manifest["content"]


@pytest.mark.long
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_search_finds_the_bits_of_one_process(cluster, tmp_path, monkeypatch, is_killed):
    """9,000 queries in two slices; the first worker that has sent some of its results is killed."""
    rng = np.random.default_rng(0)
    xq, xb = (rng.standard_normal((rows, 384)).astype(np.float32) for rows in (9_000, 3_000))
    embeddings = written(tmp_path / "emb", xb)
    sent, pids = str(tmp_path / "sent"), tmp_path / "pids"
    pids.mkdir()

    class Searcher(ray_search._Searcher):  # travels by value
        def search(self, xq):
            import os
            import signal
            from pathlib import Path

            from ance_cli.retrieval import ray_search

            Path(pids, str(os.getpid())).touch()
            ray_search._PIECE_BYTES = 8 * 20 * 1_500
            for message in super().search(xq):
                yield message
                if is_killed and isinstance(message, tuple):
                    try:
                        os.close(os.open(sent, os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        continue
                    os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_search, "_Searcher", Searcher)
    said = Said()
    with ray_cluster.joined(ClusterConfig(ray=cluster, gpus="none"), 2, said) as two:
        assert (two.num_workers, two.device, two.threads) == (2, "cpu", 1)
        D, docs = ray_search.search_in_cluster(two, xq, embeddings, 20, said)
    expected = exact_top_docs(xq, embeddings, 20)  # in one thread, as all tests
    assert D.tobytes() == expected[0].tobytes() and docs.tobytes() == expected[1].tobytes()
    assert len(list(pids.iterdir())) == 2, "a process per worker, not per slice"
    assert os.path.exists(sent) == is_killed
    assert len(said.texts) == 1 + is_killed
    lost = f"on {socket.gethostname()} ended with its process or its node; 1 others continue"
    assert not is_killed or said.texts[1].endswith(lost)


def written(folder, vectors):
    """Embeddings of one row per document."""
    plan = Plan("embeddings", folder, {}, {"tower": "t", "corpus": "c"})
    offsets = np.arange(len(vectors) + 1)
    writer = EmbeddingsWriter.begin(plan.open_partial(), offsets, vectors.shape[1], "float16", 500)
    for block in range(writer.num_blocks):
        docs = writer.docs_of(block)
        writer.write_block(block, vectors[docs.start : docs.stop])
    plan.publish_folder(writer.finish([f"d{place}" for place in range(len(vectors))]), {})
    return Embeddings(folder)


@pytest.mark.long
def test_mining_in_a_cluster_makes_the_same(cluster, world, tmp_path):
    source, config = vector_source(tmp_path / "one", None), MineConfig(depth=20, negatives=5)
    mine(*world, source, MiningFiles(tmp_path / "one.jsonl"), config, HERE)
    two = DriverConfig(gpus="none", dtype="fp32", ray=cluster)
    mine(*world, source, MiningFiles(tmp_path / "ray.jsonl"), config, two)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    one, other = (read_candidates(tmp_path / f"{name}.candidates", 64) for name in ("one", "ray"))
    assert other.docs.tobytes() == one.docs.tobytes()
    assert other.scores.tobytes() == one.scores.tobytes()
    assert other.positive_scores == one.positive_scores


@pytest.mark.long
def test_what_a_worker_finds_wrong_is_told_as_by_one_process(cluster, world, tmp_path):
    """A damaged block of the corpus, which a task reads."""
    matrix = tmp_path / "one" / VECTORS
    damaged = bytearray(matrix.read_bytes())
    damaged[-1] ^= 1
    matrix.write_bytes(damaged)
    two = DriverConfig(gpus="none", dtype="fp32", ray=cluster)
    with pytest.raises(BadInput, match="block 12 .* is damaged") as caught:
        mine(*world, vector_source(tmp_path / "one", None), MiningFiles(tmp_path / "n.jsonl"),
             MineConfig(depth=20), two)  # fmt: skip
    assert "ance encode --force" in caught.value.hint


RUN = ["--data", "data", "--refresh-every", 3, "--segments", 1, "--batch-size", 8, "--depth", 12,
       "--negatives", 4, "--gpus", "none", "--encode-dtype", "fp32", "--keep", 9]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_refreshes_of_a_loop_make_the_same_in_a_cluster(cluster, ance, checkpoint, mode):
    """`refresh --ray`, as `loop` starts it; only the switches of `async` are a matter of time."""
    make_dataset(ance.cwd / "data")
    ance("loop", *RUN, "--mode", "sync", "--ckpt", checkpoint, "-o", "here")
    found = ance(
        "loop", *RUN, "--mode", mode, "--ckpt", checkpoint, "--ray", cluster, "-o", "there"
    )
    assert found.stderr.count(f"1 workers (cpu) on Ray at {cluster}") == 2
    here, there = (ance.cwd / name / "generations" for name in ("here", "there"))
    for number in ("0001", "0002") if mode == "sync" else ("0001",):
        for name in ("embeddings/embeddings.npy", "negatives.jsonl", "dev.json"):
            assert (there / number / name).read_bytes() == (here / number / name).read_bytes(), name
        one, other = (
            json.loads((folder / number / "manifest.json").read_text()) for folder in (here, there)
        )
        assert other["fingerprint"] == one["fingerprint"]


@pytest.mark.long
def test_a_refresh_in_a_cluster_searches_its_index_here(cluster, ance, checkpoint):
    make_dataset(ance.cwd / "data")
    make = ["train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0,
            "--total-steps", 9]  # fmt: skip
    refresh = ["--depth", 12, "--index-factory", "Flat", "--gpus", "none", "--encode-dtype", "fp32"]
    negatives = []
    for name, flags in (("here", []), ("there", ["--ray", cluster])):
        ance(*make, "-o", name)
        ance("refresh", name, *refresh, *flags)
        negatives.append(
            (ance.cwd / name / "generations" / "0001" / "negatives.jsonl").read_bytes()
        )
    assert negatives[0] == negatives[1]


def test_a_loop_hands_its_cluster_on_to_the_refreshes(inside, dataset, checkpoint):
    found = inside("loop", *RUN, "--ckpt", checkpoint, "--ray", "head:6379", "-o", "run",
                   "--dry-run", "--json")  # fmt: skip
    facts = json.loads(found.stdout)
    refreshes = [words for words in facts["commands"] if words.startswith("ance refresh")]
    trainers = [words for words in facts["commands"] if words.startswith("ance train-segment")]
    assert facts["mode"] == "async" and len(refreshes) == 1 and len(trainers) == 2
    assert "--ray head:6379 --local-gpus none" in refreshes[0] and "--gpus none" in refreshes[0]
    assert not any("--ray" in words or "--local-gpus" in words for words in trainers)


@pytest.mark.long
@pytest.mark.parametrize(
    ("signum", "moment"), [(signal.SIGINT, "begins"), (signal.SIGTERM, "is waited for")]
)
def test_a_ray_of_the_commands_own(ance, checkpoint, signum, moment):
    """`--ray local`, by the program; a signal to it is what it always is, also while Ray begins and
    while the first of its tasks is waited for."""
    pytest.importorskip("ray")
    make_dataset(ance.cwd / "data")
    call = ["encode", "--ckpt", checkpoint, "--data", "data", "--gpus", "none", "--ray", "local",
            "--cpu-workers", 2, "-o", "emb"]  # fmt: skip
    begun = "2 workers (cpu) on Ray at local"
    process = ance.start(*call)
    if moment == "begins":
        time.sleep(3.5)
    else:
        assert any(begun in line for line in process.stderr)
        time.sleep(1.5)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, stderr
    assert begun in ance(*call).stderr
    assert len(Embeddings(ance.cwd / "emb").ids) == 64
