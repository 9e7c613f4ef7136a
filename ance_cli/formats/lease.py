"""One writer per output: a lease file beside it names the holder and shows that it is alive.

On one host the lock on the lease file decides, and a killed holder frees it at once. Between hosts
that share a file system locks and process ids mean nothing, so there the heartbeat decides: the
holder touches the file every few seconds, and a lease not touched for a minute is stale.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import orjson

from ance_cli.errors import Busy
from ance_cli.formats.atomic import disk_errors

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
WAIT_SECONDS = 0.5


def lease_name(output: Path) -> Path:
    """The lease file that guards `output`."""
    return output.with_name(f".{output.name}.lease")


def read_holder(path: Path) -> dict[str, str | int] | None:
    """Host, pid, start time and command of a lease's holder, or None where nobody is named."""
    try:
        holder = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


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
        fresh = time.time() - os.fstat(descriptor).st_mtime < STALE_SECONDS
        if other and other.get("host") != host and fresh:
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
