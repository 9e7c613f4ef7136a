"""What ranks of several processes agree on."""

import os
import socket
import subprocess
import sys
import time

import pytest

RANK = """
import os, sys, time
import torch
from ance_cli.training.distributed import join_world
world = join_world([torch.device("cpu")] * 2, lambda lost: os._exit(9))
folder = sys.argv[1]
if world.rank == 1:
    time.sleep(1.0)
    open(f"{folder}/came", "w").close()
world.wait()
assert os.path.exists(f"{folder}/came"), "the barrier let rank 0 go before rank 1 came"
assert world.all_reduce_sum(world.rank + 1, 0.5) == [3.0, 1.0]
assert world.all_reduce_min(5 - world.rank) == 4
loss, left_out = world.summed(torch.tensor(1.5), torch.tensor(world.rank * 2.0))
assert (float(loss), float(left_out)) == (3.0, 2.0)
world.close()
"""


def test_a_barrier_waits_and_numbers_are_those_of_all_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    until = time.monotonic() + 120
    codes = [rank.wait(until - time.monotonic()) for rank in ranks]
    assert codes == [0, 0]


def test_numbers_of_one_rank_are_its_own():
    import torch

    from ance_cli.training.distributed import World

    world = World(torch.device("cpu"))
    assert world.all_reduce_sum(2, 0.5) == [2, 0.5] and world.all_reduce_min(3) == 3
    (loss,) = world.summed(torch.tensor(1.5))
    assert loss == pytest.approx(1.5)
