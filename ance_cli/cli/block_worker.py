"""One worker process of `ance encode` on several devices:
`python -m ance_cli.cli.block_worker PARENT`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies; without that (beyond Linux) it ends
    when it asks for its next block."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def work() -> None:
    """Read the orders, then block numbers, from stdin, until it ends."""
    stdout = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no message
    from ance_cli.encoding.blocks import EncodeJob
    from ance_cli.encoding.workers import Pipe, serve

    def next_block() -> int | None:
        line = sys.stdin.buffer.readline()
        return int(line) if line else None

    job = EncodeJob.from_json(sys.stdin.buffer.readline())
    serve(job, Pipe(os.fdopen(stdout, "wb", buffering=0).write), next_block)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    work()
