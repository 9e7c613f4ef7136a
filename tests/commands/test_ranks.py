"""Several ranks share a step: gloo on a CPU stands for NCCL on GPUs."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time

import pytest

from tests.world import Ance, AnceInside, jsonl, make_dataset

TOLERANCE = 2e-4
"""Of losses in float32 after a few steps: sums are added up in another order."""

CHUNK = 12
"""Rows that the first of two ranks exceeds at the second step, and the other does not."""

STEPS = ["--steps", 6, "--lr", "1e-3", "--dropout", "0", "--log-every", 1, "--dtype", "fp32"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("ranks")
    make_dataset(folder / "data")
    program = AnceInside(folder)
    program("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20,
            "--negatives", 6, "-o", "bm25.jsonl")  # fmt: skip
    program.checkpoint = checkpoint
    return program


def wait_for_lines(process, metrics, lines):
    """Until the log of a command that trains has so many lines."""
    until = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


def ranks_of(run):
    """The process ids of a run's ranks."""
    found = subprocess.run(["pgrep", "-f", f"ance_cli.cli.train_worker {run}"], capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


def command(world, name, *flags):
    return ["train-segment", "bm25.jsonl", "--data", "data", "--ckpt", world.checkpoint, *STEPS,
            *flags, "-o", name]  # fmt: skip


@pytest.mark.long
def test_ranks_with_different_numbers_of_chunks_do_not_wait_for_each_other(world):
    """Which way a micro-batch goes is one choice of all ranks: one has a chunk, another several."""
    recipe = ["--segmentation", "special", "--passage-length", 8]
    world(*command(world, "whole", *recipe, "--batch-size", 4))
    world(*command(world, "chunked", *recipe, "--batch-size", 2, "--cpu-workers", 2,
                   "--grad-cache", CHUNK))  # fmt: skip
    assert losses(world, "chunked") == pytest.approx(losses(world, "whole"), abs=TOLERANCE)


def losses(world, name):
    return [line["loss"] for line in jsonl(world.cwd / name / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        [
            "--in-batch",
            "all",
            "--segmentation",
            "special",
            "--passage-length",
            8,
            "--negatives-per-positive",
            2,
            "--accumulation",
            2,
            "--matryoshka",
            "16,8",
        ],
        pytest.param(
            ["--towers", "two", "--in-batch", "hardest", "--grad-cache", 3], marks=pytest.mark.long
        ),
    ],
    ids=["in-batch-maxp", "two-towers-cached"],
)
def test_two_ranks_train_as_one(world, recipe, tmp_path, monkeypatch):
    """The same losses for the same global batch, with negatives gathered from both ranks."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name = recipe[1]
    world(*command(world, f"one-{name}", *recipe, "--batch-size", 8))
    world(*command(world, f"two-{name}", *recipe, "--batch-size", 4, "--cpu-workers", 2))
    assert not list(tmp_path.glob("torchelastic_*"))
    checkpoint = world.cwd / f"two-{name}" / "latest"
    modes = {path.stat().st_mode & 0o777 for path in checkpoint.rglob("*") if path.is_file()}
    assert modes == {checkpoint.stat().st_mode & 0o666}
    one, two = losses(world, f"one-{name}"), losses(world, f"two-{name}")
    assert len(one) == 6 and two == pytest.approx(one, abs=TOLERANCE)
    first = [
        jsonl(world.cwd / f"{n}-{name}" / "metrics.jsonl")[0]["grad_norm"] for n in ("one", "two")
    ]
    # later ones drift apart: Adam makes a step of a rounding error where a gradient is nearly 0
    assert first[1] == pytest.approx(first[0], rel=1e-3)
    identity = json.loads((world.cwd / f"two-{name}" / "run.json").read_text())["identity"]
    assert (identity["batch_size"], identity["devices"]) == (4, 2)


DIVIDED = ["--cpu-workers", 2, "--shard", "full"]
CHECKPOINTED = ["--in-batch", "all", "--layer-decay", "0.8", "--gradient-checkpointing"]
CACHED = ["--towers", "two", "--accumulation", 2, "--freeze-layers", 1, "--grad-cache", 3,
          "--segmentation", "special", "--passage-length", 8]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "first", "then"),
    [
        pytest.param(CHECKPOINTED, DIVIDED, [], id="divided-then-whole", marks=pytest.mark.long),
        pytest.param(CACHED, DIVIDED, DIVIDED, id="divided", marks=pytest.mark.long),
        pytest.param(
            CACHED, DIVIDED[:2], DIVIDED, id="copied-then-divided", marks=pytest.mark.long
        ),
    ],
)
def test_a_model_that_two_ranks_divide_trains_as_a_whole_one(world, recipe, first, then, request):
    """And goes on, divided or not, from the state that either of them wrote."""
    name = request.node.callspec.id
    for run, flags, later in (
        (f"one-{name}", ["--batch-size", 8], []),
        (f"two-{name}", ["--batch-size", 4, *first], then),
    ):
        world(*command(world, run, *recipe, *flags, "--total-steps", 9))
        world("train-segment", "bm25.jsonl", "--steps", 3, "--log-every", 1, "--force", *later,
              "-o", run)  # fmt: skip
    expected = losses(world, f"one-{name}")
    assert len(expected) == 9
    assert losses(world, f"two-{name}") == pytest.approx(expected, abs=1e-5)
    world("encode", "--ckpt", f"two-{name}/latest", "--data", "data", "-o", f"vectors-{name}")


def test_one_device_has_nothing_to_divide(world):
    found = world(*command(world, "alone", "--shard", "full"), code=2)
    assert "--shard full divides the model among several devices, and there is one" in found.stderr
    found = world(*command(world, "alone", "--shard", "full", "--cpu-workers", 2,
                           "--optimizer", "adamw-8bit"), code=2)  # fmt: skip
    assert "cannot divide the moments of --optimizer adamw-8bit" in found.stderr
    assert not (world.cwd / "alone").exists()


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_devices(world):
    """The global batch is the run's: one device alone takes all of it."""
    world(*command(world, "moved", "--batch-size", 4, "--cpu-workers", 2, "--total-steps", 12))
    world("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 20, "--seed", 5,
          "--negatives", 6, "-o", "more.jsonl")  # fmt: skip
    more = ["train-segment", "more.jsonl", "--steps", 6, "--log-every", 1, "-o", "moved"]
    found = world(*more, "--cpu-workers", 3, code=2)
    assert "trains 8 pairs at a time (--batch-size 4 on 2 devices)" in found.stderr
    world(*more)
    world(*command(world, "stayed", "--batch-size", 8, "--total-steps", 12))
    world("train-segment", "more.jsonl", "--steps", 6, "--log-every", 1, "-o", "stayed")
    assert losses(world, "moved") == pytest.approx(losses(world, "stayed"), abs=TOLERANCE)


@pytest.mark.long
def test_a_rank_that_dies_ends_the_others_and_the_command_continues(world):
    train = command(world, "killed", "--batch-size", 4, "--cpu-workers", 2,
                    "--state-minutes", "0.00001")  # fmt: skip
    train[train.index(6)] = 60
    metrics = world.cwd / "killed" / "metrics.jsonl"
    process = world.start(*train)
    wait_for_lines(process, metrics, 3)
    ranks = ranks_of("killed")
    assert len(ranks) >= 2
    os.kill(ranks[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, stderr
    assert "ended with signal SIGKILL; the others were stopped" in stderr
    assert "Traceback" not in stderr
    assert not ranks_of("killed")
    assert not (world.cwd / "killed" / "checkpoints" / "step-00000060").exists()
    world(*train)
    assert [line["step"] for line in jsonl(metrics)] == list(range(1, 61))


@pytest.mark.long
def test_a_rank_that_stands_still_is_noticed(world):
    """As a machine that is gone: its connections stay open, and it answers nothing."""
    train = command(world, "still", "--batch-size", 4, "--cpu-workers", 2)
    train[train.index(6)] = 4000
    metrics = world.cwd / "still" / "metrics.jsonl"
    process = world.start(*train)
    wait_for_lines(process, metrics, 3)
    os.kill(ranks_of("still")[-1], signal.SIGSTOP)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 5, stderr
    assert "has not answered for 40 s: its process or its machine stopped" in stderr
    assert "Traceback" not in stderr
    assert not ranks_of("still")


@pytest.mark.long
def test_divergence_on_several_ranks_keeps_its_exit_code(world, capfd):
    train = command(world, "nan", "--batch-size", 4, "--cpu-workers", 2, "--max-grad-norm", "1e30")
    train[train.index("1e-3")] = "1e30"
    found = world(*train, code=7)
    assert "rank 0 ended with exit code 7" in found.stderr
    said = capfd.readouterr().err
    assert said.count("training diverged") == 1 and "Warning" not in said


@pytest.mark.long
def test_two_nodes_meet_and_train_as_one(world):
    """Two machines' commands on this one, with a real rendezvous; node 1 makes nothing itself."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    nodes = [*command(world, "nodes", "--batch-size", 4, "--in-batch", "all"), "--gpus", "none",
             "--nnodes", 2, "--rdzv-endpoint", f"localhost:{port}"]  # fmt: skip
    second = Ance(world.cwd).start(*nodes, "--node-rank", 1)
    world(*nodes, "--node-rank", 0)
    _, stderr = second.communicate(timeout=120)
    assert second.returncode == 0, stderr
    world(*command(world, "one-node", "--batch-size", 8, "--in-batch", "all"))
    assert losses(world, "nodes") == pytest.approx(losses(world, "one-node"), abs=TOLERANCE)
    assert "up to date" in world(*nodes, "--node-rank", 1).stderr
    found = world(*command(world, "x", "--nnodes", 2), code=2)
    assert "--nnodes needs --rdzv-endpoint" in found.stderr


@pytest.mark.long
def test_ranks_end_with_the_command_that_started_them(world):
    """SIGTERM: the step is finished, the state saved, one word said. SIGKILL: they go at once, so
    that nobody trains without the run's lease."""
    train = command(world, "ended", "--batch-size", 4, "--cpu-workers", 2)
    train[train.index(6)] = 4000
    metrics = world.cwd / "ended" / "metrics.jsonl"

    def started(lines):
        process = Ance(world.cwd).start(*train)
        wait_for_lines(process, metrics, lines)
        return process

    process = started(3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert stderr.count("stopped; finished work is kept") == 1 and not ranks_of("ended")
    assert "death signal" not in stderr and "Traceback" not in stderr
    last = jsonl(metrics)[-1]["step"]
    assert (world.cwd / "ended" / "state" / f"step-{last:08d}").exists()
    process = started(last + 3)
    assert len(ranks_of("ended")) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 5
    while ranks_of("ended"):
        assert time.monotonic() < until, "a rank outlived the command"
        time.sleep(0.05)
