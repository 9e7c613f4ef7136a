"""Workers, one for each device, over one queue of blocks: processes of this machine, or those of
another kind (`ray_workers`).

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
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli import errors
from ance_cli.errors import AnceError, ResourceExhausted

if TYPE_CHECKING:
    from ance_cli.encoding.blocks import EncodeJob, Listener, Work

_OVERDUE = 3.0
_OVERDUE_AT_LEAST_SECONDS = 10.0
"""A block in hand for longer than this, and than `_OVERDUE` times as long as any block has taken,
is given to a worker that has nothing left to do."""

_LAST_WORDS_SECONDS = 60.0
_LOOK_SECONDS = 0.5


class Worker(ABC):
    """What the parent knows of a worker: what it has in hand, and how it is reached.

    Its messages arrive in a queue as (worker, message), None when it is gone.
    """

    def __init__(self, number: int, job: EncodeJob) -> None:
        self.name = f"worker {number} ({job.device})"
        self.in_hand: dict[int, float] = {}
        """Block -> when it was handed out."""
        self.told: dict[int, int] = {}
        """Block -> tokens of it that the listener has heard of."""
        self.is_waiting = self.is_gone = False
        self.capacity = 0.0
        self.problem: AnceError | None = None

    def hand(self, block: int) -> None:
        self.is_waiting = False
        self.in_hand[block] = time.monotonic()
        self.send(block)

    @abstractmethod
    def send(self, block: int) -> None:
        """Tell it which block is next; one that is gone hears nothing."""

    @abstractmethod
    def no_more(self) -> None:
        """Let it end: there is nothing left to do."""

    @abstractmethod
    def end(self) -> None:
        """End it at once, also one that hangs or is gone; no block is harmed."""

    @abstractmethod
    def ending(self) -> str:
        """How one that is gone ended, in words."""


class _Process(Worker):
    """A worker process of this machine."""

    def __init__(self, number: int, job: EncodeJob, threads: int, events: queue.Queue[Any]) -> None:
        super().__init__(number, job)
        share = str(threads)
        environment = {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ance_cli.cli.block_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for the parent, who then ends the workers
        )
        self._write(job.to_json())
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _write(self, line: bytes) -> None:
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
        self.process.wait()
        events.put((self, None))

    def send(self, block: int) -> None:
        self._write(b"%d" % block)

    def no_more(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already

    def end(self) -> None:
        self.process.kill()  # also one that is stopped
        self.process.wait()

    def ending(self) -> str:
        code = self.process.returncode
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


class _Pool:
    def __init__(
        self,
        workers: Sequence[Worker],
        events: queue.Queue[Any],
        blocks: Sequence[int],
        listener: Listener,
    ) -> None:
        self.workers, self.events = workers, events
        self.left = deque(blocks)
        self.missing = set(blocks)
        self.listener = listener
        self.longest: float | None = None
        """Seconds of the block that took the longest."""

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
        from ance_cli.encoding.blocks import Work

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
            if not isinstance(worker.problem, ResourceExhausted):
                raise worker.problem  # the others would come to the same
        elif "say" in message:
            self.listener.say(message["say"])
        elif "capacity" in message:
            worker.capacity = message["capacity"]
        else:
            worker.is_waiting = True

    def _lose(self, worker: Worker) -> None:
        worker.is_gone, worker.is_waiting = True, False
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
                slow.end()
                slow.is_gone = True  # its last message, still to come, gives its blocks back
                return

    def _overdue(self) -> Worker | None:
        if self.longest is None:
            return None
        limit = time.monotonic() - max(_OVERDUE_AT_LEAST_SECONDS, _OVERDUE * self.longest)
        for worker in self.workers:
            if not worker.is_gone and any(since < limit for since in worker.in_hand.values()):
                return worker
        return None

    def _all_gone(self) -> AnceError:
        problems = [worker.problem for worker in self.workers if worker.problem]
        if problems:
            return problems[-1]
        ends = ", ".join(f"{worker.name} {_how(worker)}" for worker in self.workers)
        return ResourceExhausted(
            f"every worker process ended: {ends}; {len(self.missing)} blocks are left",
            hint="repeat the command: only the missing blocks are encoded",
        )


def _how(worker: Worker) -> str:
    return f"({worker.problem.what})" if worker.problem else worker.ending()


def share_out(
    workers: Sequence[Worker],
    events: queue.Queue[Any],
    blocks: Sequence[int],
    listener: Listener,
) -> float:
    """Hand the blocks to the workers, whose messages arrive in `events`, until all are durable.

    Returns the FLOPs that their devices could have done meanwhile, 0 where not all said so.
    Raises what a worker found wrong, and `ResourceExhausted` where every worker died. All workers
    are ended at the end.
    """
    try:
        _Pool(workers, events, blocks, listener).run()
    finally:
        for worker in workers:
            worker.end()
    said = [worker.capacity for worker in workers]
    return sum(said) if all(said) else 0.0


def run_workers(
    jobs: Sequence[EncodeJob], threads: int, blocks: Sequence[int], listener: Listener
) -> float:
    """As `share_out`, with one worker process for each of the orders, `threads` threads each. The
    workers end with this process."""
    events: queue.Queue[Any] = queue.Queue()
    workers = [_Process(number, each, threads, events) for number, each in enumerate(jobs, start=1)]
    return share_out(workers, events, blocks, listener)


def serve(job: EncodeJob, pipe: Pipe, next_block: Callable[[], int | None]) -> None:
    """A worker's part: encode what `next_block` names, and tell the parent."""
    from ance_cli.encoding.blocks import BlockEncoder

    def ready() -> int | None:
        pipe.tell(ready=True)
        return next_block()

    try:
        encoder = BlockEncoder(job, pipe)
        pipe.tell(capacity=encoder.run(ready))
    except AnceError as problem:
        pipe.tell(problem=(type(problem).__name__, problem.what, problem.hint))


class Pipe:
    """What a worker tells its parent, one JSON object each; `write` takes one at a time."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self._lock = threading.Lock()  # blocks are written by a thread of their own

    def tell(self, **message: Any) -> None:
        with self._lock:
            self._write(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))

    def say(self, text: str) -> None:
        self.tell(say=text)

    def encoded(self, block: int, tokens: int) -> None:
        self.tell(encoded=(block, tokens))

    def finished(self, block: int, work: Work) -> None:
        self.tell(finished=(block, asdict(work)))
