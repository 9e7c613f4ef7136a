"""Workers, one per device, over one queue of blocks: processes of this machine, or of a Ray cluster
(`ray_workers`).

A worker reports when it is ready for a block and when a block is durable; the parent assigns the
blocks. A slow worker therefore gets fewer blocks, and the blocks of a dead worker return to the
queue. `python -m ance_cli.encoding.workers PARENT` is such a worker process.
"""

from __future__ import annotations

import ctypes
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
from ance_cli.call import MODULE
from ance_cli.errors import AnceError, ResourceExhausted
from ance_cli.formats.atomic import explained
from ance_cli.models.devices import asked_threads

if TYPE_CHECKING:
    from ance_cli.encoding.blocks import EncodeJob, Listener, Work

_OVERDUE = 3.0
_OVERDUE_AT_LEAST_SECONDS = 10.0
"""A block that takes longer than this, and longer than `_OVERDUE` times the slowest block so far,
is assigned to a worker that is idle."""

_LAST_MESSAGES_SECONDS = 60.0
_POLL_SECONDS = 0.5

_PR_SET_PDEATHSIG = 1


class Worker(ABC):
    """The parent's view of a worker: its blocks, and how to send to it.

    The worker's messages arrive in a queue as (worker, message); the message None says that the
    worker has ended.
    """

    def __init__(self, number: int, job: EncodeJob) -> None:
        self.name = f"worker {number} ({job.device})"
        self.assigned: dict[int, float] = {}
        """Block -> when it was assigned."""
        self.reported: dict[int, int] = {}
        """Block -> encoded tokens that were reported to the listener."""
        self.is_waiting = self.is_gone = False
        self.capacity = 0.0
        self.problem: AnceError | None = None

    def assign(self, block: int) -> None:
        self.is_waiting = False
        self.assigned[block] = time.monotonic()
        self.send(block)

    @abstractmethod
    def send(self, block: int) -> None:
        """Send the number of the worker's next block; does nothing if the worker has ended."""

    @abstractmethod
    def no_more(self) -> None:
        """Let the worker end: no block is left."""

    @abstractmethod
    def end(self) -> None:
        """End the worker at once, even if it hangs or has ended; no block is damaged."""

    @abstractmethod
    def ending(self) -> str:
        """How a worker that is gone has ended, in words."""


class _Process(Worker):
    """A worker process of this machine."""

    def __init__(self, number: int, job: EncodeJob, threads: int, events: queue.Queue[Any]) -> None:
        super().__init__(number, job)
        count = str(threads)
        environment = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        self.process = subprocess.Popen(
            [*MODULE, "ance_cli.encoding.workers", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the workers
        )
        self._write(job.to_json())
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker has ended; so does its stdout, which `_listen` notices

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
            pass  # the worker has ended already

    def end(self) -> None:
        self.process.kill()  # SIGKILL also ends a stopped process
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
            self._next_event(_POLL_SECONDS)
            if self.missing and all(worker.is_gone for worker in self.workers):
                raise self._all_gone()
            self._assign()
        for worker in self.workers:
            worker.no_more()
        until = time.monotonic() + _LAST_MESSAGES_SECONDS
        while time.monotonic() < until and not all(worker.is_gone for worker in self.workers):
            self._next_event(_POLL_SECONDS)

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
                worker.reported[block] = worker.reported.get(block, 0) + tokens
                self.listener.encoded(block, tokens)
        elif "finished" in message:
            block, work = message["finished"]
            taken = time.monotonic() - worker.assigned.pop(block)
            self.longest = max(self.longest or 0.0, taken)
            self.missing.discard(block)
            self.listener.finished(block, Work(**work))
        elif "problem" in message:
            name, what, hint = message["problem"]
            worker.problem = getattr(errors, name)(what, hint=hint)
            if not isinstance(worker.problem, ResourceExhausted):
                raise worker.problem  # every other worker would fail in the same way
        elif "say" in message:
            self.listener.say(message["say"])
        elif "capacity" in message:
            worker.capacity = message["capacity"]
        else:
            worker.is_waiting = True

    def _lose(self, worker: Worker) -> None:
        worker.is_gone, worker.is_waiting = True, False
        back = [block for block in worker.assigned if block in self.missing]
        for block in back:
            self.listener.encoded(block, -worker.reported.get(block, 0))
        self.left.extendleft(back)
        if self.missing:
            others = sum(not other.is_gone for other in self.workers)
            self.listener.say(f"{worker.name} ended {_how(worker)}; {others} others continue")

    def _assign(self) -> None:
        idle = [worker for worker in self.workers if worker.is_waiting]
        for worker in idle:
            if self.left:
                worker.assign(self.left.popleft())
            elif (slow := self._overdue()) is not None:
                self.listener.say(f"{slow.name} is overdue and is stopped")
                slow.end()
                slow.is_gone = True  # its blocks return to the queue with its last message
                return

    def _overdue(self) -> Worker | None:
        if self.longest is None:
            return None
        limit = time.monotonic() - max(_OVERDUE_AT_LEAST_SECONDS, _OVERDUE * self.longest)
        for worker in self.workers:
            if not worker.is_gone and any(since < limit for since in worker.assigned.values()):
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
    """Assign the blocks to the workers, whose messages arrive in `events`, until all are durable.

    Returns the FLOPs that their devices could have done in the same time, 0 if a worker did not
    measure them. Raises the problem that a worker found, and `ResourceExhausted` if every worker
    died. Ends all workers.
    """
    try:
        _Pool(workers, events, blocks, listener).run()
    finally:
        for worker in workers:
            worker.end()
    measured = [worker.capacity for worker in workers]
    return sum(measured) if all(measured) else 0.0


def encode_in_processes(
    jobs: Sequence[EncodeJob], blocks: Sequence[int], listener: Listener
) -> float:
    """`share_out` over one process per job, which divide this process's threads among themselves.

    The processes end with this one.
    """
    threads = asked_threads() or os.cpu_count() or 1
    events: queue.Queue[Any] = queue.Queue()
    workers = [
        _Process(number, job, max(1, threads // len(jobs)), events)
        for number, job in enumerate(jobs, start=1)
    ]
    return share_out(workers, events, blocks, listener)


# ---------------------------------------------------------------- in the worker


class Pipe:
    """A worker's messages to its parent, one JSON object each; `write` takes one at a time."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self._lock = threading.Lock()  # a thread of its own writes blocks, and reports them

    def send(self, **message: Any) -> None:
        with self._lock:
            self._write(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))

    def say(self, text: str) -> None:
        self.send(say=text)

    def encoded(self, block: int, tokens: int) -> None:
        self.send(encoded=(block, tokens))

    def finished(self, block: int, work: Work) -> None:
        self.send(finished=(block, asdict(work)))

    def problem(self, problem: AnceError) -> None:
        self.send(problem=(type(problem).__name__, problem.what, problem.hint))


def serve(job: EncodeJob, pipe: Pipe, next_block: Callable[[], int | None]) -> None:
    """Encode the blocks that `next_block` returns until it returns None; report to the parent."""
    from ance_cli.encoding.blocks import BlockEncoder

    def ready() -> int | None:
        pipe.send(ready=True)
        return next_block()

    try:
        encoder = BlockEncoder(job, pipe)
        pipe.send(capacity=encoder.run(ready))
    except AnceError as problem:
        pipe.problem(problem)
    except Exception as error:
        failure = explained(error)
        if failure is None:
            raise
        pipe.problem(failure)


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies. Only Linux can; elsewhere the process
    ends when it asks for its next block."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _work() -> None:
    """Read a job, then block numbers, from stdin until it ends."""
    stdout = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's print must not be a message
    from ance_cli.encoding.blocks import EncodeJob

    def next_block() -> int | None:
        line = sys.stdin.buffer.readline()
        return int(line) if line else None

    job = EncodeJob.from_json(sys.stdin.buffer.readline())
    serve(job, Pipe(os.fdopen(stdout, "wb", buffering=0).write), next_block)


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    _work()
