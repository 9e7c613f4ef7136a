"""Which of several failed ranks is the cause, and what a signal does to slow and to stuck ranks."""

import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from ance_cli.training.launch import PEER_LOST, _cause


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([143, -9], (1, -9)),  # torchrun ended rank 0 with SIGTERM
        ([1, -9], (1, -9)),
        ([PEER_LOST, -9], (1, -9)),
        ([-6, -9, 143], (1, -9)),  # a backend aborts a rank that lost its peer
        ([-15, 5], (1, 5)),
        ([1, 5], (1, 5)),
        ([7, 7], (0, 7)),
        ([-6, PEER_LOST], (0, -6)),
        ([143, 1], (1, 1)),
        ([143, PEER_LOST], (0, 143)),
        ([PEER_LOST, PEER_LOST], (0, PEER_LOST)),
        ([-11, 143], (0, -11)),
    ],
)
def test_the_rank_that_failed_first_is_the_cause(codes, cause):
    failures = {
        rank: SimpleNamespace(exitcode=code, timestamp=100) for rank, code in enumerate(codes)
    }
    assert _cause(failures) == cause


def test_a_rank_that_torchrun_had_to_kill_is_not_the_cause():
    failures = {
        0: SimpleNamespace(exitcode=-9, timestamp=131),
        1: SimpleNamespace(exitcode=5, timestamp=100),
    }
    assert _cause(failures) == (1, 5)


RANK = """
import os, signal, sys, time
kind, folder = sys.argv[1:]
me = int(os.environ["RANK"])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
open(f"{folder}/started-{me}", "w").close()
while not stopped or (kind == "stuck" and me == 1):
    time.sleep(0.02)
time.sleep(1.0)  # the step in hand, and the state
open(f"{folder}/saved-{me}", "w").close()
sys.exit(143)
"""
COMMAND = """
import sys
from ance_cli.errors import AnceError, Stopped
from ance_cli.training import launch
launch.MODULE = (sys.executable, "-c", sys.argv[1])
launch.KILLED_AFTER_SECONDS = 3.0
try:
    launch.launch(sys.argv[2:], 2, launch.Nodes(), 1)
except Stopped as stop:
    sys.exit(stop.exit_code)
except AnceError as error:
    print(error.what, error.exit_code)
    sys.exit(9)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["slow", "stuck"])
def test_a_signal_waits_for_slow_ranks_and_ends_stuck_ones(tmp_path, kind):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, RANK, kind, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("started-*"))) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    saved = sorted(path.name for path in tmp_path.glob("saved-*"))
    if kind == "slow":
        assert (process.returncode, saved) == (143, ["saved-0", "saved-1"])
        return
    assert process.returncode == 9 and saved == ["saved-0"]
    assert said == "a rank did not end within 3 s of SIGTERM and was killed 143\n"
