"""A worker process for each device, over one queue of blocks.

A worker says when it is ready for a block and when one is durable; the parent hands out blocks. So
a slow worker merely takes fewer of them, and what a dead one had in hand goes back to the queue.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from ance_cli import errors
from ance_cli.errors import AnceError, MachineGaveOut
from ance_cli.stages.blocks import Listener, Orders, Work

_OVERDUE = 3.0
_OVERDUE_AT_LEAST_SECONDS = 10.0
"""A block in hand for longer than this, and than `_OVERDUE` times as long as any block has taken,
is given to a worker that has nothing left to do."""

_LAST_WORDS_SECONDS = 60.0
_LOOK_SECONDS = 0.5


class _Worker:
    """One process, and what it has in hand."""

    def __init__(self, number: int, orders: Orders, threads: int, events: queue.Queue[Any]) -> None:
        self.name = f"worker {number} ({orders.device})"
        self.in_hand: dict[int, float] = {}
        """Block -> when it was handed out."""
        self.told: dict[int, int] = {}
        """Block -> tokens of it that the listener has heard of."""
        self.is_waiting = self.is_gone = False
        self.capacity = 0.0
        self.problem: AnceError | None = None
        share = str(threads)
        environment = {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ance_cli.cli.block_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for the parent, who then ends the workers
        )
        self._send(orders.to_json())
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone, which the end of its stdout tells as well

    def _listen(self, events: queue.Queue[Any]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, orjson.loads(line)))
        events.put((self, None))

    def hand(self, block: int) -> None:
        self.is_waiting = False
        self.in_hand[block] = time.monotonic()
        self._send(b"%d" % block)

    def no_more(self) -> None:
        """Let it end: there is nothing left to do."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already

    def end(self) -> None:
        self.process.kill()  # also one that is stopped; no block is harmed
        self.process.wait()


class _Pool:
    def __init__(
        self, orders: Sequence[Orders], threads: int, blocks: Sequence[int], listener: Listener
    ) -> None:
        self.left = deque(blocks)
        self.missing = set(blocks)
        self.listener = listener
        self.longest: float | None = None
        """Seconds of the block that took the longest."""
        self.events: queue.Queue[Any] = queue.Queue()
        self.workers: list[_Worker] = []
        for number, each in enumerate(orders, start=1):
            self.workers.append(_Worker(number, each, threads, self.events))

    def run(self) -> None:
        while self.missing:
            self._next_event(_LOOK_SECONDS)
            if self.missing and all(worker.is_gone for worker in self.workers):
                raise self._all_gone()
            self._hand_out()
        for worker in self.workers:
            worker.no_more()
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while time.monotonic() < until and not all(worker.is_gone for worker in self.workers):
            self._next_event(_LOOK_SECONDS)

    def _next_event(self, timeout: float) -> None:
        try:
            worker, message = self.events.get(timeout=timeout)
        except queue.Empty:
            return
        if message is None:
            self._lose(worker)
        elif "encoded" in message:
            block, tokens = message["encoded"]
            if block in self.missing:
                worker.told[block] = worker.told.get(block, 0) + tokens
                self.listener.encoded(block, tokens)
        elif "finished" in message:
            block, work = message["finished"]
            taken = time.monotonic() - worker.in_hand.pop(block)
            self.longest = max(self.longest or 0.0, taken)
            self.missing.discard(block)
            self.listener.finished(block, Work(**work))
        elif "problem" in message:
            name, what, hint = message["problem"]
            worker.problem = getattr(errors, name)(what, hint=hint)
            if not isinstance(worker.problem, MachineGaveOut):
                raise worker.problem  # the others would come to the same
        elif "say" in message:
            self.listener.say(message["say"])
        elif "capacity" in message:
            worker.capacity = message["capacity"]
        else:
            worker.is_waiting = True

    def _lose(self, worker: _Worker) -> None:
        worker.is_gone, worker.is_waiting = True, False
        worker.process.wait()
        back = [block for block in worker.in_hand if block in self.missing]
        for block in back:
            self.listener.encoded(block, -worker.told.get(block, 0))
        self.left.extendleft(back)
        if self.missing:
            others = sum(not other.is_gone for other in self.workers)
            self.listener.say(f"{worker.name} ended {_how(worker)}; {others} others go on")

    def _hand_out(self) -> None:
        idle = [worker for worker in self.workers if worker.is_waiting]
        for worker in idle:
            if self.left:
                worker.hand(self.left.popleft())
            elif (slow := self._overdue()) is not None:
                self.listener.say(f"{slow.name} is overdue and is ended")
                slow.end()  # the end of its stdout gives its blocks back
                return

    def _overdue(self) -> _Worker | None:
        if self.longest is None:
            return None
        limit = time.monotonic() - max(_OVERDUE_AT_LEAST_SECONDS, _OVERDUE * self.longest)
        for worker in self.workers:
            alive = worker.process.poll() is None
            if alive and any(since < limit for since in worker.in_hand.values()):
                return worker
        return None

    def _all_gone(self) -> AnceError:
        problems = [worker.problem for worker in self.workers if worker.problem]
        if problems:
            return problems[-1]
        ends = ", ".join(f"{worker.name} {_how(worker)}" for worker in self.workers)
        return MachineGaveOut(
            f"every worker process ended: {ends}; {len(self.missing)} blocks are left",
            hint="repeat the command: only the missing blocks are encoded",
        )


def _how(worker: _Worker) -> str:
    if worker.problem:
        return f"({worker.problem.what})"
    code = worker.process.returncode
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def run_workers(
    orders: Sequence[Orders], threads: int, blocks: Sequence[int], listener: Listener
) -> float:
    """Encode the blocks with one worker process for each of the orders, `threads` threads each.

    Returns the FLOPs that their devices could have done meanwhile, 0 where not all of them said so.
    Raises what a worker found wrong, and `MachineGaveOut` where every worker died. The workers end
    with this process.
    """
    pool = _Pool(orders, threads, blocks, listener)
    try:
        pool.run()
    finally:
        for worker in pool.workers:
            worker.end()
    said = [worker.capacity for worker in pool.workers]
    return sum(said) if all(said) else 0.0


class Pipe:
    """What a worker tells its parent, one JSON line each."""

    def __init__(self, descriptor: int) -> None:
        self._handle = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()  # blocks are written by a thread of their own

    def tell(self, **message: Any) -> None:
        with self._lock:
            self._handle.write(orjson.dumps(message) + b"\n")

    def say(self, text: str) -> None:
        self.tell(say=text)

    def encoded(self, block: int, tokens: int) -> None:
        self.tell(encoded=(block, tokens))

    def finished(self, block: int, work: Work) -> None:
        self.tell(finished=(block, asdict(work)))
