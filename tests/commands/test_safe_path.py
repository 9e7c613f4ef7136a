"""No module of the working folder is imported: not by the program, nor by its child processes."""

import os
import subprocess
import sys

import pytest

from tests.world import Ance

TRAP = """\
import sys
open("RAN", "a").write(" ".join(sys.argv) + "\\n")
raise SystemExit(9)
"""
NAMES = ("queue", "secrets", "faiss", "uuid", "site_packages")


@pytest.fixture
def trapped(tmp_path, monkeypatch) -> Ance:
    """The program in a folder of a stranger's, started as a user starts it."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(TRAP)
    return Ance(tmp_path)


TRAIN = ("--ckpt", "ckpt", "--data", "data", "--gpus", "none", "--batch-size", 4, "-q", "-o", "run")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_encode(trapped, dataset, checkpoint, workers):
    (trapped.cwd / "ckpt").symlink_to(checkpoint)
    trapped("encode", *TRAIN[:6], "-o", "emb", "--cpu-workers", workers, "--threads", 1)
    assert not (trapped.cwd / "RAN").exists()


@pytest.mark.long
def test_ranks_and_the_loops_stages(trapped, dataset, checkpoint):
    (trapped.cwd / "ckpt").symlink_to(checkpoint)
    trapped("loop", *TRAIN, "--refresh-every", 1, "--segments", 1, "--cpu-workers", 2,
            "--mode", "sync", "--negatives", 2, "--max-restarts", 0, "--threads", 1)  # fmt: skip
    assert not (trapped.cwd / "RAN").exists()


@pytest.mark.long
def test_the_probes_of_doctor(trapped):
    subprocess.run([sys.executable, "-m", "ance_cli", "doctor"], cwd=trapped.cwd,
                   env=dict(os.environ), capture_output=True)  # fmt: skip
    assert not (trapped.cwd / "RAN").exists()
