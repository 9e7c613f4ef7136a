"""What may go wrong while a loop runs: deaths, full disks, damage, clocks, copies, divergence."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ance_cli.formats import lease
from ance_cli.formats.retention import ending_need
from ance_cli.formats.run_folder import RunFolder
from benchmarks.soak import Recipe, Soak
from tests.intact import check_finished, check_intact, check_ledger, ledger, replayed
from tests.processes import alive, family
from tests.world import Ance, AnceInside, make_dataset, tree

TRAINING = ["--batch-size", 8, "--lr", "1e-3", "--dtype", "fp32"]
MINING = ["--depth", 12, "--negatives", 4, "--encode-dtype", "fp32"]
PREPARE = ["train-segment", "--data", "data", *TRAINING, "--steps", 0]
EVERY = 20
LOOP = ["loop", "--data", "data", *TRAINING, *MINING, "--log-every", 1, "--mode", "async",
        "--refresh-every", EVERY, "-o", "run"]  # fmt: skip


@pytest.fixture
def world(tmp_path, checkpoint):
    """A dataset and the program; `run` is where a run goes."""
    make_dataset(tmp_path / "data")
    program = AnceInside(tmp_path)
    program.run = tmp_path / "run"
    program.ckpt = ["--ckpt", checkpoint]
    return program


def wait_for(what, process, seconds=240):
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.005)


def num_steps(world):
    path = world.run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def events(world):
    return ledger(world.run / "events.jsonl")


def kill(process, role):
    """SIGKILL of the child in a role, once it is there."""

    def child():
        return [member for member in family(process.pid) if member.role == role]

    wait_for(child, process)
    child()[0].kill()


def gone(members, seconds=30):
    until = time.monotonic() + seconds
    while left := [member for member in members if alive(member)]:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.05)


# ---------------------------------------------------------------- deaths


@pytest.mark.long
def test_each_side_dies_and_the_loop_goes_on(world):
    """Trainer, inferencer, SIGTERM and SIGKILL of the supervisor: the switches that came of it are
    in the ledger, and training on them undisturbed gives the same weights."""
    loop = [*LOOP, "--segments", 5, *world.ckpt]
    program = Ance(world.cwd)
    process = program.start(*loop)
    wait_for(lambda: num_steps(world) >= 5, process)
    kill(process, "trainer")
    check_intact(world.run)
    wait_for(lambda: list(world.run.glob("generations/.*.partial")), process)
    kill(process, "inferencer")
    check_intact(world.run)
    wait_for(lambda: num_steps(world) >= EVERY + 5, process)
    members = family(process.pid)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    assert "the trainer ended with signal SIGKILL; restarting it in 1 s" in stderr
    assert not [member for member in members if alive(member)]
    check_intact(world.run)
    check_ledger(world.run)
    last = num_steps(world)

    process = program.start(*loop)
    wait_for(lambda: num_steps(world) > last + 2, process)
    members = family(process.pid)
    process.kill()
    process.communicate()
    program(*loop)  # at once: children that still end are waited for
    gone(members)
    check_intact(world.run)
    check_ledger(world.run)
    check_finished(world.run, 5 * EVERY, EVERY)
    replayed(world.run, world.cwd / "replay", 5 * EVERY, EVERY, [])


IN_A_DESTRUCTOR = """
import os, signal, sys, time
from ance_cli.cli.exit import exit_code_of
from ance_cli.errors import install_signal_handlers

class Left:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def program():
    Left()
    time.sleep(30)

install_signal_handlers()
sys.exit(exit_code_of(program))
"""


def test_a_signal_is_not_lost_in_a_destructor(tmp_path):
    """Python drops what is raised there; an inferencer outlived its supervisor that way."""
    command = [sys.executable, "-c", IN_A_DESTRUCTOR]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 143, found.stderr
    assert "stopped; finished work is kept" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.long
def test_a_few_rounds_of_the_soak(tmp_path):
    soak = Soak(tmp_path, Recipe("async", every=20, segments=2), random.Random(3))
    tally = soak.rounds(2)
    assert tally.kills.total() == 2 and tally.runs >= 1


def test_a_second_loop_is_refused(world):
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    with RunFolder(world.run).held("supervisor"):
        found = world(*LOOP, "--segments", 2, *world.ckpt, code=6)
    text = " ".join(found.stderr.split())
    assert f"run is being written by process {os.getpid()} on {os.uname().nodename}" in text


@pytest.mark.long
@pytest.mark.slow
def test_a_trainer_that_fails_for_good_ends_the_inferencer(world):
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    with open(world.run / "generations/0001/negatives.jsonl", "a") as handle:
        handle.write("{}\n")
    process = Ance(world.cwd).start(*LOOP, "--segments", 2, *world.ckpt)
    wait_for(lambda: len(family(process.pid)) == 3, process)
    members = family(process.pid)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    text = " ".join(stderr.split())
    assert "negatives.jsonl: differs from its manifest" in text
    assert "make another generation with: ance refresh run --force" in text
    assert not [member for member in members if alive(member)]
    assert "trainer died" in [event["what"] for event in events(world)]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_divergence_ends_the_loop_and_says_why(world, mode):
    flags = ["--segments", 2, "--max-grad-norm", "1e30"]
    loop = [word if word != "1e-3" else "1e30" for word in LOOP]
    loop[loop.index("async")] = mode
    process = Ance(world.cwd).start(*loop, *flags, *world.ckpt)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 7, stderr
    assert "training diverged" in stderr and "a smaller --lr" in stderr
    (told,) = [event for event in events(world) if event["what"] == "diverged"]
    assert "training diverged" in told["reason"]
    assert [path.name for path in (world.run / "checkpoints").iterdir()] == ["step-00000000"]
    assert json.loads((world.run / "negatives.json").read_text())["generation"] == 1
    assert not list((world.run / "state").iterdir())
    assert not list((world.run / "lease").iterdir())


# ---------------------------------------------------------------- full disks


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a small file system; skipped where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = []

    def mount(folder, size):
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("this machine does not let us mount a tmpfs")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def leave_room(folder, room):
    """Fill a file system but for `room` bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))


def is_short(world, *arguments):
    """Whether the command ended for want of room, saying so; else it succeeded."""
    try:
        found = world(*arguments, code=5)
    except AssertionError as surprise:
        assert str(surprise).startswith("exit code 0, expected 5")
        return False
    assert "no room left on the disk" in found.stderr
    return True


def test_a_full_disk_at_every_write_of_a_refresh(world, tmpfs):
    """With a little more room each time: exit code 5, nothing half made has a name; with room
    enough, the bytes of a refresh that was never short of it."""
    for name in ("run", "whole"):
        world(*PREPARE, "--total-steps", 40, "-o", name, *world.ckpt)
    world("refresh", "whole", *MINING)
    tmpfs(world.run / "generations", "1m")
    short, room = 0, 0
    while True:
        leave_room(world.run / "generations", room)
        if not is_short(world, "refresh", "run", *MINING):
            break
        assert not list((world.run / "generations").glob("[0-9]*"))
        assert not (world.run / "negatives.json").exists()
        short, room = short + 1, room + 4096
    assert short >= 8
    check_intact(world.run)
    for name in ("negatives.jsonl", "dev.json", "embeddings/embeddings.npy"):
        whole = world.cwd / "whole/generations/0001" / name
        assert (world.run / "generations/0001" / name).read_bytes() == whole.read_bytes()


def test_a_full_disk_at_every_write_of_an_append(world, tmpfs):
    """With a little more room each time: exit code 5 and the old folder as it was; then the bytes
    of an append that was never short of room."""
    small = world.cwd / "small"
    tmpfs(small, "1m")
    encode = ["encode", "--data", "data", *world.ckpt, "--dtype", "fp32"]
    for name in ("whole", small / "emb"):
        world(*encode, "-o", name)
    old = tree(small / "emb")
    corpus = world.cwd / "data" / "corpus.jsonl"
    corpus.write_text("".join(reversed(corpus.read_text().splitlines(keepends=True)[3:])))
    world(*encode, "-o", "whole", "--append")
    short, room = 0, 0
    while True:
        leave_room(small, room)
        if not is_short(world, *encode, "-o", small / "emb", "--append"):
            break
        assert tree(small / "emb") == old
        short, room = short + 1, room + 4096
    assert short >= 5
    found, whole = tree(small / "emb"), tree(world.cwd / "whole")
    del found["manifest.json"], whole["manifest.json"]
    assert found == whole


def test_a_full_disk_at_every_write_of_the_trainer(world, tmpfs, monkeypatch):
    train = ["train-segment", "n.jsonl", "--steps", 4, "--checkpoint-every", 2, "--log-every", 1]
    record = {"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1", "d2"]}
    (world.cwd / "n.jsonl").write_text(json.dumps(record) + "\n")
    tmpfs(world.run, "4m")
    small = world.run / "run"
    for name in (small, "whole"):
        world(*PREPARE, "--total-steps", 40, "-o", name, *world.ckpt)
    world(*train, "-o", "whole")
    leave_room(world.run, ending_need(RunFolder(small)) - 4096)
    assert is_short(world, *train, "-o", small)
    assert not (small / "metrics.jsonl").exists(), "not one step was trained for nothing"
    monkeypatch.setattr("ance_cli.training.train_segment.check_free", lambda run: None)
    short, room = 0, 0
    while True:
        leave_room(world.run, room)
        if not is_short(world, *train, "-o", small):
            break
        check_intact(small)
        short, room = short + 1, room + 200_000
    assert short >= 3
    check_intact(small)
    for step in (2, 4):
        name = f"checkpoints/step-{step:08d}/model.safetensors"
        assert (small / name).read_bytes() == (world.cwd / "whole" / name).read_bytes()
    assert [line["step"] for line in ledger(small / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.long
def test_the_trainer_goes_on_while_the_inferencer_has_no_room(world, tmpfs):
    """The loop says so, and takes up refreshing when there is room again."""
    segments = 40
    world(*PREPARE, "--total-steps", segments * EVERY, "-o", "run", *world.ckpt)
    generations = world.run / "generations"
    tmpfs(generations, "2m")
    process = Ance(world.cwd).start(*LOOP, "--segments", segments, "--keep", 1, *world.ckpt)
    wait_for(lambda: num_steps(world) >= 3, process)
    leave_room(generations, 8192)
    died = {"who": "supervisor", "what": "inferencer died", "exit_code": 5}
    wait_for(lambda: any(died.items() <= event.items() for event in events(world)), process)
    at = num_steps(world)
    wait_for(lambda: num_steps(world) >= at + 5, process)
    (generations / "filler").unlink()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    text = " ".join(stderr.split())
    assert "no room left on the disk" in text
    assert "the refresh daemon ended with exit code 5" in text
    check_finished(world.run, segments * EVERY, EVERY)
    check_ledger(world.run)


# ---------------------------------------------------------------- damage


def flip(path):
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unpublish(world):
    """Turn the first generation into one that was interrupted just before it got its name."""
    folder = world.run / "generations" / "0001"
    manifest = json.loads((folder / "manifest.json").read_text())
    parts = ("kind", "format_version", "algorithm_version", "shaped_by", "inputs")
    (folder / "plan.json").write_text(json.dumps({name: manifest[name] for name in parts}))
    (folder / "manifest.json").unlink()
    (world.run / "negatives.json").unlink()
    return folder.rename(folder.with_name(".0001.partial"))


@pytest.mark.parametrize(
    ("part", "file"),
    [("embeddings", "embeddings.npy"), ("index", "index"), ("negatives.jsonl", "")],
)
def test_a_damaged_part_of_a_half_made_generation_is_made_again(world, part, file):
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    flags = [*MINING, "--index-factory", "HNSW8"] if part == "index" else MINING
    world("refresh", "run", *flags)
    folder = world.run / "generations" / "0001"
    wanted = [(folder / part / file).read_bytes(), (folder / "negatives.jsonl").read_bytes()]
    flip(unpublish(world) / part / file)
    found = world("refresh", "run")
    assert "was damaged after an earlier call made it; making it again" in " ".join(
        found.stderr.split()
    )
    assert [(folder / part / file).read_bytes(),
            (folder / "negatives.jsonl").read_bytes()] == wanted  # fmt: skip
    (dropped,) = [event for event in events(world) if event["what"] == "damaged part dropped"]
    assert dropped["part"] == f"generations/.0001.partial/{part}"
    check_intact(world.run)


def test_a_damaged_published_generation_is_refused_with_a_hint(world):
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    generation = world.run / "generations" / "0001"
    for name in ("embeddings/embeddings.npy", "negatives.jsonl"):
        flip(generation / name)
    found = world("mine", "--embeddings", generation / "embeddings", "--data", "data", "--ckpt",
                  "run/latest", *MINING[:4], "-o", "n.jsonl", code=3)  # fmt: skip
    assert "its hash differs from the one in the manifest" in " ".join(found.stderr.split())
    train = ["train-segment", "--steps", 2, "-o", "run"]
    found = world(*train, generation / "negatives.jsonl", code=3)
    assert "make another generation with: ance refresh run --force" in " ".join(
        found.stderr.split()
    )
    world("refresh", "run", "--force")
    world(*train, world.run / "generations/0002/negatives.jsonl")


def test_the_pointer_is_restored_as_its_hint_says(world):
    """From the newest whole generation; no generation is made again under another's number."""
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    generations, pointer = world.run / "generations", world.run / "negatives.json"
    world("train-segment", generations / "0001/negatives.jsonl", "--steps", 4, "-o", "run")
    world("refresh", "run")
    before, whole = tree(generations), pointer.read_bytes()
    pointer.write_bytes(whole[:20])
    assert "remove the file: the next ance refresh" in world("refresh", "run", code=3).stderr
    pointer.unlink()
    world("refresh", "run")
    assert pointer.read_bytes() == whole and tree(generations) == before
    pointer.unlink()
    flip(generations / "0002" / "negatives.jsonl")
    damaged = tree(generations)
    world("refresh", "run", "--keep", 3)
    after = tree(generations)
    assert after.items() >= damaged.items()
    assert (generations / "0003/negatives.jsonl").read_bytes() == (before["0002/negatives.jsonl"])
    assert json.loads(pointer.read_bytes())["generation"] == 3
    world("refresh", "run", "--force", "--depth", 10)
    assert tree(generations).keys() >= {f"000{n}/negatives.jsonl" for n in (1, 2, 3, 4)}


@pytest.mark.long
def test_run_json_is_gone_for_a_moment_while_a_command_stops(world):
    world(*PREPARE, "--total-steps", 400, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    negatives = world.run / "generations/0001/negatives.jsonl"
    world("train-segment", negatives, "--steps", 4, "-o", "run")
    kept = {path for path in world.run.rglob("*") if path.parent.parent == world.run}
    process = Ance(world.cwd).start(
        "train-segment", negatives, "--steps", 300, "--log-every", 1, "-o", "run"
    )
    at = num_steps(world)
    wait_for(lambda: num_steps(world) > at, process)
    aside = (world.run / "run.json").rename(world.run / "run.json.bak")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    refused = world("train-segment", "n.jsonl", "--data", "data", *world.ckpt, "--steps", 0,
                    "--total-steps", 9, "-o", "run", code=4)  # fmt: skip
    assert "restore run.json" in " ".join(refused.stderr.split())
    aside.rename(world.run / "run.json")
    assert kept <= set(world.run.rglob("*"))
    check_intact(world.run)


# ---------------------------------------------------------------- clocks and copies


def set_clock(folder, seconds):
    """As if everything had been written `seconds` from now."""
    at = time.time() + seconds
    for path in folder.rglob("*"):
        os.utime(path, (at, at), follow_symlinks=False)


@pytest.mark.parametrize("days", [400, -400])
def test_a_clock_that_jumps_breaks_nothing(world, days):
    """Everything from the future or the past, leases that a kill left too: work goes on, and what
    is up to date stays so."""
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    holder = {"host": os.uname().nodename, "pid": 1, "started": "?", "command": "ance"}
    for role in ("supervisor", "trainer", "inferencer"):
        (world.run / "lease" / role).write_text(json.dumps(holder))
    set_clock(world.run, days * 86_400)
    world("refresh", "run", *MINING)
    first = world.run / "generations" / "0001" / "negatives.jsonl"
    world("train-segment", first, "--steps", 4, "-o", "run")
    set_clock(world.run, days * 86_400)
    assert "up to date" in world("train-segment", first, "--steps", 4, "-o", "run").stderr
    world("refresh", "run")
    assert "up to date" in world("refresh", "run").stderr
    check_intact(world.run)
    assert not [name for name in os.listdir(world.run / "lease") if name != "supervisor"]


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_of_a_run_goes_on_in_its_own_place(world, links):
    """In the middle of a segment; the first one is gone by then. The data stay where they are."""
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    negatives = "generations/0001/negatives.jsonl"
    world("train-segment", f"run/{negatives}", "--steps", 4, "-o", "run")
    records = (world.run / "segments.jsonl").read_text().splitlines(keepends=True)
    (world.run / "segments.jsonl").write_text(records[0])  # as if killed before it was noted
    shutil.copytree(world.run, world.cwd / "moved" / "copy", symlinks=links)
    shutil.rmtree(world.run)
    copy = world.cwd / "moved" / "copy"
    assert RunFolder(copy).unfinished_segment().negatives == negatives
    world("train-segment", copy / negatives, "--steps", 4, "-o", copy)
    assert len(ledger(copy / "segments.jsonl")) == 2
    assert "up to date" in world("train-segment", copy / negatives, "--steps", 4, "-o",
                                 copy).stderr  # fmt: skip
    world("refresh", copy)
    assert "up to date" in world("refresh", copy).stderr
    assert not world.run.exists()
    assert (copy / "latest").resolve() == copy / "checkpoints" / "step-00000004"
    check_intact(copy)


# ---------------------------------------------------------------- without a supervisor


@pytest.mark.long
def test_the_two_sides_by_hand_make_the_run_of_a_loop(world):
    """As systemd or Slurm would start them; the loop then finds its work done."""
    segments, last_step = 3, 3 * EVERY
    world(*PREPARE, "--total-steps", last_step, "-o", "run", *world.ckpt)
    program = Ance(world.cwd)
    trainer = program.start("train-segment", "--follow", "--steps", last_step, "--checkpoint-every",
                            EVERY, "--log-every", 1, "-o", "run")  # fmt: skip
    inferencer = program.start("refresh", "run", "--follow", "--until", last_step, *MINING)
    for process in (trainer, inferencer):
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    check_intact(world.run)
    check_ledger(world.run)
    check_finished(world.run, last_step, EVERY)
    found = world(*LOOP, "--segments", segments, *world.ckpt)
    assert "up to date" in found.stderr


def from_the_docs(opening, program, last_step):
    """The code block of the guide to cron and Slurm that begins with or holds `opening`, with
    this machine's paths and few steps."""
    guides = Path(__file__).parents[2] / "docs" / "guides"
    text = (guides / "cron-and-slurm.md").read_text()
    (block,) = [block for block in re.findall(r"```\w*\n(.*?)```", text, re.S) if opening in block]
    for written, here in (
        ("/srv/retrieval", str(program.cwd)),
        (".venv/bin/ance", f"{sys.executable} -m ance_cli"),
        ("runs/ance", "run"),
        ("30000", str(last_step)),
        ("3000", str(EVERY)),
        (" --gpus 1", ""),
    ):
        block = block.replace(written, here)
    return block


@pytest.mark.long
def test_the_crontab_line_twice_in_a_row(world):
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    line = from_the_docs("*/15 * * * *", world, 40).removeprefix("*/15 * * * *").strip()
    for _ in range(2):
        subprocess.run(["sh", "-c", line], check=True, env=Ance(world.cwd).environment())
    assert [path.name for path in (world.run / "generations").iterdir()] == ["0001"]
    said = (world.cwd / "refresh.log").read_text()
    assert said.count("warning") == said.count("\n"), said  # nothing else with -q


@pytest.mark.long
def test_slurms_script_requeues_what_was_stopped_and_ends_with_the_run(world):
    """The script and what is submitted with it, as in the guide; `scontrol` is a stand-in that
    notes its call."""
    last_step = 2 * EVERY
    world(*PREPARE, "--total-steps", last_step, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    queue = world.cwd / "bin" / "scontrol"
    queue.parent.mkdir()
    queue.write_text(f"#!/bin/sh\necho $* >>{world.cwd}/requeued\n")
    queue.chmod(0o755)
    environment = Ance(world.cwd).environment(
        PATH=f"{queue.parent}:{os.environ['PATH']}", SLURM_JOB_ID="7"
    )

    script = world.cwd / "ance.sbatch"
    script.write_text(from_the_docs("#SBATCH --requeue", world, last_step))
    submitted = from_the_docs("sbatch --job-name=", world, last_step)

    def submit(name):
        (line,) = re.findall(rf"^sbatch --job-name={name} ance.sbatch (.*)$", submitted, re.M)
        return subprocess.Popen(
            ["bash", str(script), *shlex.split(line)], env=environment, start_new_session=True
        )

    inferencer = submit("refresher")
    time.sleep(1.5)
    inferencer.send_signal(signal.SIGTERM)
    assert inferencer.wait(60) == 143
    assert (world.cwd / "requeued").read_text() == "requeue 7\n"
    both = [submit("refresher"), submit("trainer")]
    assert [job.wait(240) for job in both] == [0, 0]
    assert (world.cwd / "requeued").read_text() == "requeue 7\n"
    check_intact(world.run)
    assert json.loads((world.run / "negatives.json").read_text())["checkpoint_step"] == last_step


# ---------------------------------------------------------------- refused commands


def settings(world):
    names = ("run.json", "refresh.json", "loop.json", "negatives.json", "segments.jsonl")
    return {name: (world.run / name).read_bytes() for name in names if (world.run / name).exists()}


def test_a_refused_command_leaves_the_settings_of_a_run(world):
    world(*PREPARE, "--total-steps", 40, "-o", "run", *world.ckpt)
    world("refresh", "run", *MINING)
    before = settings(world)
    run = RunFolder(world.run)
    with lease.hold(run.lease("inferencer"), "a generation"):
        world("refresh", "run", "--force", "--depth", 30, code=6)
        (world.run / "refresh.json").rename(world.cwd / "aside")
        world("refresh", "run", "--depth", 30, code=6)
        (world.cwd / "aside").rename(world.run / "refresh.json")
    assert settings(world) == before
    with run.held("trainer"):
        world("train-segment", run.generation(1).negatives, "--steps", 2, "-o", "run", code=6)
    loop = [word if word != 12 else 30 for word in LOOP]
    process = Ance(world.cwd).start(*loop, "--segments", 2, *world.ckpt)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 4 and "depth 12 -> 30" in " ".join(stderr.split())
    assert settings(world) == before
    world("refresh", "run", "--force", "--depth", 10)
    assert json.loads((world.run / "refresh.json").read_text())["depth"] == 10
