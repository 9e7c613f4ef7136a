"""One writer per output: the second is refused by name, a dead one frees the output."""

import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ance_cli.errors import Busy, ResourceExhausted
from ance_cli.formats import lease

HOLD = """
import sys
from pathlib import Path
from ance_cli.formats import lease
with lease.hold(Path(sys.argv[1]), "out"):
    print("held", flush=True)
    sys.stdin.read()
"""


def record(path, host, pid, age):
    """A lease as a holder on `host` left it, last touched `age` seconds ago."""
    holder = {"host": host, "pid": pid, "started": "2024-01-01T00:00:00+00:00", "command": "ance x"}
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def path(tmp_path):
    return lease.lease_name(tmp_path / "out")


def test_lease_name_is_next_to_the_output(tmp_path):
    assert lease.lease_name(tmp_path / "out") == tmp_path / ".out.lease"


def test_a_lease_names_its_holder_and_is_gone_afterwards(path):
    with lease.hold(path, "out"):
        holder = lease.read_holder(path)
        assert holder["pid"] == os.getpid()
        assert holder["host"] == socket.gethostname()
        assert holder["command"].startswith("ance")
    assert not path.exists()


def test_a_lease_is_gone_after_a_failure(path):
    with pytest.raises(RuntimeError), lease.hold(path, "out"):
        raise RuntimeError
    assert not path.exists()
    with lease.hold(path, "out"):
        pass


def test_a_second_holder_is_refused_and_the_first_keeps_it(path):
    with lease.hold(path, "the output runs/a"):
        for _ in range(2):
            with pytest.raises(Busy) as caught, lease.hold(path, "the output runs/a"):
                pytest.fail("two holders at once")
            assert re.fullmatch(
                rf"the output runs/a is being written by process {os.getpid()} on "
                rf"{re.escape(socket.gethostname())}, started \S+, heartbeat \d+ s ago: ance.*",
                caught.value.what,
            )
        assert lease.read_holder(path)["pid"] == os.getpid()
    assert caught.value.exit_code == 6
    assert caught.value.hint == "wait for that process, or stop it and repeat the command"


def test_a_killed_holder_frees_the_lease_at_once(path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=f"by process {child.pid} on"), lease.hold(path, "out"):
            pytest.fail("two holders at once")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
    assert lease.read_holder(path)["pid"] == child.pid, "a killed process cannot tidy up"
    with lease.hold(path, "out"):
        assert lease.read_holder(path)["pid"] == os.getpid()


def test_another_hosts_fresh_lease_is_refused(path):
    record(path, "elsewhere", 77, age=lease.STALE_SECONDS - 10)
    before = path.read_bytes()
    with pytest.raises(Busy) as caught, lease.hold(path, "out"):
        pytest.fail("two holders at once")
    assert re.fullmatch(
        r"out is being written by process 77 on elsewhere, started 2024-01-01T00:00:00\+00:00, "
        r"heartbeat 5\d s ago: ance x",
        caught.value.what,
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("age", [lease.STALE_SECONDS + 1, -86_400])
def test_another_hosts_stale_lease_is_taken(path, monkeypatch, age):
    """One from the future is, too: a clock that jumped does not lock a run for a day."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    record(path, "elsewhere", 77, age)
    with lease.hold(path, "out"):
        assert lease.read_holder(path)["host"] == socket.gethostname()


def test_a_lease_that_another_host_took_is_left_to_it(path):
    with lease.hold(path, "out"):
        record(path, "elsewhere", 77, age=0)
        taken = path.read_bytes()
    assert path.read_bytes() == taken


@pytest.mark.parametrize("age", [3600, -3600])
def test_another_hosts_beating_lease_is_refused_whatever_its_clock_says(path, monkeypatch, age):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    record(path, "elsewhere", 77, age)
    beats = iter(range(1, 1000))

    def beat():
        while not done.wait(0.02):
            os.utime(path, (time.time() - age + next(beats),) * 2)

    done = threading.Event()
    holder = threading.Thread(target=beat)
    holder.start()
    try:
        with pytest.raises(Busy, match="by process 77 on elsewhere"), lease.hold(path, "out"):
            pytest.fail("two holders at once")
    finally:
        done.set()
        holder.join()


def test_the_heartbeat_outlives_failed_beats(path, monkeypatch):
    """As while the server of a network file system restarts."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    utime, tried = os.utime, []

    def fails_at_first(*arguments):
        tried.append(arguments)
        if len(tried) <= 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        utime(*arguments)

    with lease.hold(path, "out"):
        utime(path, (0, 0))
        monkeypatch.setattr(os, "utime", fails_at_first)
        until = time.monotonic() + 30
        while path.stat().st_mtime == 0:
            assert time.monotonic() < until, "no heartbeat after a failed one"
            time.sleep(0.01)
    assert len(tried) > 3


def test_a_failing_disk_is_not_taken_for_another_holder(path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lease.fcntl, "flock", flock)
    with pytest.raises(ResourceExhausted, match="Input/output error"), lease.hold(path, "out"):
        pytest.fail("held")


def test_a_lease_that_cannot_be_read_is_not_taken(path, monkeypatch):
    record(path, "elsewhere", 77, age=0)
    before = path.read_bytes()

    def read_record(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lease, "read_record", read_record)
    with pytest.raises(OSError, match="Input/output error"), lease.hold(path, "out"):
        pytest.fail("held")
    assert path.read_bytes() == before


def test_the_umask_decides_the_mode_of_a_lease(path):
    before = os.umask(0o002)
    try:
        with lease.hold(path, "out"):
            assert path.stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_a_fresh_lease_of_this_host_without_a_lock_is_taken(path):
    record(path, socket.gethostname(), 77, age=0)
    with lease.hold(path, "out"):
        assert lease.read_holder(path)["pid"] == os.getpid()


@pytest.mark.parametrize("left", [b"", b'{"host": "els', b"[1]"])
def test_a_lease_that_names_nobody_is_taken(path, left):
    path.write_bytes(left)
    assert lease.read_holder(path) is None
    with lease.hold(path, "out"):
        assert lease.read_holder(path)["pid"] == os.getpid()


def test_read_holder_of_no_lease(path):
    assert lease.read_holder(path) is None


def test_looking_at_a_lease_leaves_it_alone(path):
    assert lease.look(path) is None and not path.exists()
    with lease.hold(path, "out"):
        before = path.stat()
        found = lease.look(path)
        assert found.alive and found.pid == os.getpid() and found.heartbeat_age < 60
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        with pytest.raises(Busy), lease.hold(path, "out"):
            pytest.fail("the look took the lease")


def test_a_lease_that_nobody_has_open_is_dead(path):
    for pid in (os.getpid(), 2**22 + 1):  # a process that does other things, and none at all
        record(path, socket.gethostname(), pid, age=0)
        assert not lease.look(path).alive


def test_another_hosts_heartbeat_shows_whether_the_holder_is_alive(path):
    for age, alive in ((lease.STALE_SECONDS - 10, True), (lease.STALE_SECONDS + 1, False)):
        record(path, "elsewhere", 77, age=age)
        found = lease.look(path)
        assert (found.host, found.pid, found.alive) == ("elsewhere", 77, alive)
        assert found.heartbeat_age == pytest.approx(age, abs=5)


@pytest.mark.parametrize("left", [b"", b'{"host": "els', b"[1]", b'{"pid": 3}'])
def test_a_lease_that_names_nobody_shows_nobody(path, left):
    path.write_bytes(left)
    assert lease.look(path) is None


def test_the_holder_shows_that_it_is_alive(path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with lease.hold(path, "out"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < lease.STALE_SECONDS


def test_a_full_disk_is_reported_as_one(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(ResourceExhausted), lease.hold(path, "out"):
            pytest.fail("held without a name in the lease")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
