"""One writer per output: a lease file next to it names the holder and shows that it is alive.

On one host the lock on the lease file decides, and a killed holder frees it at once. Between hosts
that share a file system locks and process ids mean nothing, so there the heartbeat decides: the
holder touches the file every few seconds, and a lease not touched for a minute, nor while somebody
watches it, is stale.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from ance_cli.errors import BadInput, Busy
from ance_cli.formats.atomic import disk_errors
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.records import read_record

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
WAIT_SECONDS = 0.5


def lease_name(output: Path) -> Path:
    """The lease file that guards `output`."""
    return output.with_name(f".{output.name}.lease")


def read_holder(path: Path) -> dict[str, str | int] | None:
    """Host, pid, start time and command of a lease's holder, or None where nobody is named."""
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


def look(path: Path) -> Holder | None:
    """Who holds a lease, without touching it; None where nobody is named.

    Whoever took its lock to find out, for a moment only, would turn away a holder who comes just
    then. So on this host a holder lives as long as its process has the file open, and its heartbeat
    decides on another host and where that cannot be seen (a process of another user).
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
    """Whether a process of this host has a file open; None where that cannot be seen."""
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
        except OSError:  # closed since it was listed
            continue
    return False


def _refuse(path: Path, what: str) -> Busy:
    holder = read_holder(path) or {}
    try:
        age = f", heartbeat {max(0.0, time.time() - path.stat().st_mtime):.0f} s ago"
    except OSError:
        age = ""
    return Busy(
        f"{what} is being written by process {holder.get('pid', '?')} on "
        f"{holder.get('host', '?')}, started {holder.get('started', '?')}{age}: "
        f"{holder.get('command', '?')}",
        hint="wait for it, or stop it and repeat the command",
    )


def _open_locked(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise _refuse(path, what) from None
        try:  # the holder before us may have removed the file between our open and our lock
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _is_beating(descriptor: int) -> bool:
    """Whether a lease's heartbeat continues.

    One of the last minute does. Any other is watched for a while: by a clock that jumped, or that
    differs from the holder's, a living holder looks dead and a dead one alive.
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
    """Hold the lease file `path` while the block runs; `what` is its output in words.

    Raises `Busy`, naming the holder, where somebody else has it.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path, what)
    stop = threading.Event()
    try:
        other = read_holder(path)
        host = socket.gethostname()
        if other and other.get("host") != host and _is_beating(descriptor):
            os.close(descriptor)
            descriptor = -1
            raise _refuse(path, what)
        holder = {
            "host": host,
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["ance", *sys.argv[1:]]),
        }
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, orjson.dumps(holder), 0)

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                os.utime(descriptor)

        thread = threading.Thread(target=beat, daemon=True, name="lease-heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            path.unlink(missing_ok=True)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def of_output(output: Path) -> Iterator[None]:
    """Hold the lease of an output while the block writes it; stdout has none."""
    if output == STDIO:
        yield
        return
    with hold(lease_name(output), str(output)):
        yield


@contextmanager
def reading(artifact: Path) -> Iterator[None]:
    """Hold a reader's lease on an artifact while the block runs, so that nobody prunes it.

    Readers do not exclude each other. Where the folder cannot be written there is no lease, and
    nobody prunes there either.
    """
    path = artifact.with_name(f".{artifact.name}.reader-{uuid.uuid4().hex}")
    if not os.access(artifact.parent, os.W_OK):
        yield
        return
    with hold(path, str(artifact)):
        yield


def has_readers(artifact: Path) -> bool:
    """Whether a living reader holds a lease on the artifact; what dead ones left is removed."""
    living = False
    for path in artifact.parent.glob(f".{artifact.name}.reader-*"):
        try:
            with hold(path, str(artifact)):
                pass  # its holder is gone, and so is the file now
        except Busy:
            living = True
    return living


@contextmanager
def hold_in_turn(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """As `hold`, but waits until whoever has the lease is done, and says once who that is."""
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(hold(path, what))
                break
            except Busy as busy:
                if not told:
                    say(f"{busy.what}; waiting until it is done")
                    told = True
                time.sleep(WAIT_SECONDS)
        yield
