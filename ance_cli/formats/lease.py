"""One writer per output: a lease file next to the output names the holder and shows that it lives.

On one host, the lock on the lease file decides, and the kernel frees the lock of a killed holder at
once. Between hosts that share a file system, locks and process ids do not work, so the heartbeat
decides: the holder touches the file every 10 seconds. A lease is stale if it has not been touched
for a minute and is not touched while another process watches it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from ance_cli.errors import BadInput, Busy
from ance_cli.formats.atomic import companion, disk_errors, open_own, place_of
from ance_cli.formats.jsonl import is_stream
from ance_cli.formats.records import read_record

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
WAIT_SECONDS = 0.5


def lease_name(output: Path) -> Path:
    """The lease file that guards `output`."""
    return companion(output, ".{}.lease")


def read_holder(path: Path) -> dict[str, str | int] | None:
    """Host, pid, start time and command of a lease's holder; None if the lease names no holder."""
    try:
        return read_record(path, dict[str, str | int])
    except (OSError, BadInput):
        return None


class Holder(NamedTuple):
    """The holder that a lease names, and whether it is alive; the heartbeat's age is in seconds."""

    host: str
    pid: int
    started: str
    command: str
    heartbeat_age: float
    alive: bool

    @property
    def is_this_process(self) -> bool:
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())


def look(path: Path) -> Holder | None:
    """The holder of a lease, without taking its lock; None if the lease names no holder.

    Taking the lock to find out, even for a moment, would turn away a process that tries to hold the
    lease just then. So a holder on this host is alive if its process has the file open. The
    heartbeat decides for a holder on another host, and for a process of another user, whose open
    files are not visible.
    """
    named = read_holder(path)
    try:
        age = max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
    if named is None:
        return None
    try:
        host, pid = str(named["host"]), int(named["pid"])
    except (KeyError, ValueError):
        return None
    has_open = _has_open(pid, path) if host == socket.gethostname() else None
    alive = age < STALE_SECONDS if has_open is None else has_open
    return Holder(host, pid, str(named.get("started")), str(named.get("command")), age, alive)


def _has_open(pid: int, path: Path) -> bool | None:
    """Whether a process of this host has a file open; None if its open files are not visible."""
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except FileNotFoundError:
        return False if os.path.isdir("/proc/self/fd") else None
    except OSError:
        return None
    for name in descriptors:
        try:
            if os.path.samefile(os.path.join(folder, name), path):
                return True
        except OSError:  # closed since the listing
            continue
    return False


def busy(path: Path, what: str) -> Busy:
    """The error that names the holder of a lease; `what` names the output."""
    holder = read_holder(path) or {}
    try:
        age = f", heartbeat {max(0.0, time.time() - path.stat().st_mtime):.0f} s ago"
    except OSError:
        age = ""
    return Busy(
        f"{what} is being written by process {holder.get('pid', '?')} on "
        f"{holder.get('host', '?')}, started {holder.get('started', '?')}{age}: "
        f"{holder.get('command', '?')}",
        hint="wait for that process, or stop it and repeat the command",
    )


def _open_locked(path: Path, what: str) -> int:
    while True:
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise busy(path, what) from None
        except OSError as error:  # the file system fails, or has no locks
            os.close(descriptor)
            raise OSError(error.errno, error.strerror, str(path)) from error
        try:  # the holder before us may have removed the file between our open and our lock
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _is_beating(descriptor: int) -> bool:
    """Whether the holder of a lease still touches it.

    A heartbeat within the last minute is enough. Otherwise the file is watched for 25 seconds: if
    the clock jumped or differs from the holder's, the age of the heartbeat means nothing.
    """
    touched = os.fstat(descriptor).st_mtime_ns
    if 0 <= time.time() - touched / 1e9 < STALE_SECONDS:
        return True
    until = time.monotonic() + 2.5 * HEARTBEAT_SECONDS
    while time.monotonic() < until:
        time.sleep(HEARTBEAT_SECONDS / 10)
        if os.fstat(descriptor).st_mtime_ns != touched:
            return True
    return False


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lease file `path` while the block runs; `what` names the output in messages.

    Raises `Busy`, which names the holder, if another process has the lease.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path, what)
    try:
        try:
            other = read_record(path, dict[str, str | int])
        except (FileNotFoundError, BadInput):  # a file that cannot be read may name a holder
            other = {}
        if other and other.get("host") != socket.gethostname() and _is_beating(descriptor):
            raise busy(path, what)
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            ours = orjson.dumps(_this_process())
            os.pwrite(descriptor, ours, 0)
        with _heartbeat(descriptor):
            try:
                yield
            finally:
                with suppress(OSError):  # the work is done, and a lease that nobody locks is free
                    if os.pread(descriptor, len(ours) + 1, 0) == ours:  # no other host took it
                        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _this_process() -> dict[str, str | int]:
    """What a lease says of its holder."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["ance", *sys.argv[1:]]),
    }


@contextmanager
def _heartbeat(descriptor: int) -> Iterator[None]:
    """Touch an open file every `HEARTBEAT_SECONDS` while the block runs.

    After a failed touch, for instance while the server of a network file system restarts, the next
    one is tried sooner.
    """
    stop = threading.Event()

    def beat() -> None:
        pause = HEARTBEAT_SECONDS
        while not stop.wait(pause):
            try:
                os.utime(descriptor)
                pause = HEARTBEAT_SECONDS
            except OSError:
                pause = HEARTBEAT_SECONDS / 10

    thread = threading.Thread(target=beat, daemon=True, name="lease-heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def of_output(output: Path) -> Iterator[None]:
    """Hold the lease of an output while the block writes it; a stream or device needs none."""
    if is_stream(output):
        yield
        return
    with hold(lease_name(output), str(output)):
        yield


@contextmanager
def reading(artifact: Path) -> Iterator[None]:
    """Hold a reader's lease on an artifact while the block runs, so that no process prunes it.

    Readers do not exclude each other. A folder that is not writable gets no lease: no process can
    prune it either.
    """
    path = companion(artifact, f".{{}}.reader-{uuid.uuid4().hex}")
    if not os.access(path.parent, os.W_OK):
        yield
        return
    with hold(path, str(artifact)):
        yield


def has_readers(artifact: Path) -> bool:
    """Whether a living reader holds a lease on the artifact; leases of dead readers are removed."""
    living = False
    place = place_of(artifact)
    for path in place.parent.glob(f".{glob.escape(place.name)}.reader-*"):
        try:
            with hold(path, str(artifact)):
                pass  # the holder is dead; leaving the block removes the file
        except Busy:
            living = True
    return living


@contextmanager
def hold_in_turn(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Like `hold`, but waits for the current holder, and reports once which process that is."""
    with ExitStack() as held:
        reported = False
        while True:
            try:
                held.enter_context(hold(path, what))
                break
            except Busy as busy:
                if not reported:
                    say(f"{busy.what}; waiting for that process")
                    reported = True
                time.sleep(WAIT_SECONDS)
        yield
