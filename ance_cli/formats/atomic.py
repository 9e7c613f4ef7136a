"""Creates, replaces and removes artifacts, so that a name on disk always means a whole artifact.

An artifact is first written under a partial name next to the final one (the same file system), then
made durable, then renamed. A killed writer leaves the old or the new artifact under the name, and
perhaps a partial artifact next to it.

Files that ance names itself (partials, leases, ledgers) are never opened through a symbolic link. A
path that the user names is followed to where its data lies (`place_of`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ance_cli.errors import AnceError, ResourceExhausted, UsageProblem, system_failure

FREE_SPACE = "free some space and repeat the command; finished work is kept"
"""The hint of every error about a full disk."""

_CHECK_DISK = (
    "check the disk or the network file system, then repeat the command; finished work is kept"
)
_MORE_FILES = (
    "close other programs or raise the limit of open files (ulimit -n), then repeat the command"
)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NAME_BYTES = 255
LONGEST_NAME = 200
"""Bytes in the name of an output: the names of its partial and its leases are longer."""
_READER_SECONDS = 5.0
"""The time to wait for a process that reads a named pipe."""


def place_of(path: Path) -> Path:
    """Where the data of a path lies that the user named: links are followed, `.` has a name.

    Raises `UsageProblem` for the root of the file system.
    """
    if path.name in ("", "..") or path.is_symlink():
        path = Path(os.path.realpath(path))
    if not path.name:
        raise UsageProblem(
            f"{path}: is the root of the file system, expected a file or folder inside",
            hint="check the path",
        )
    return path


def companion(path: Path, form: str) -> Path:
    """A file of ance's own for `path`, next to its data; `form` has `{}` for the name."""
    place = place_of(path)
    name = form.format(place.name)
    if len(os.fsencode(name)) > _NAME_BYTES:
        raise name_too_long(path)
    return place.with_name(name)


def name_too_long(path: Path) -> UsageProblem:
    """The error for an output whose name leaves no room for the names of its partial and leases."""
    size = len(os.fsencode(path.name))
    return UsageProblem(
        f"{path.name[:40]}...: the name has {size} bytes, expected at most {LONGEST_NAME}: ance "
        "adds up to 55 bytes to it for files next to the output",
        hint="choose a shorter name",
    )


def partial_name(path: Path) -> Path:
    """The path under which `path` is built before the rename."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > _NAME_BYTES:
        raise name_too_long(path)
    return path.with_name(name)


def is_device(path: Path) -> bool:
    """Whether a path is a device, a pipe or a socket, which is written into and never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_own(path: Path, flags: int) -> int:
    """Open a file that ance names itself; raises `UsageProblem` if it is a symbolic link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UsageProblem(
            f"{path}: is a symbolic link, expected a file that ance wrote",
            hint=f"remove the link with: rm {shlex.quote(str(path))}",
        ) from error


def _opener(path: str, flags: int) -> int:
    return open_own(Path(path), flags)


@contextmanager
def open_partial_file(path: Path) -> Iterator[IO[bytes]]:
    """Open the partial of a file, empty. A link or a pipe of its name is removed first."""
    if path.is_symlink() or is_device(path):
        path.unlink()
    with open(path, "wb", opener=_opener) as handle:
        yield handle


@contextmanager
def open_device(path: Path) -> Iterator[IO[bytes]]:
    """Open a device or a pipe for writing; `UsageProblem` if nothing can be written into it."""
    until = time.monotonic() + _READER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if not path.is_fifo() or time.monotonic() > until:
                raise UsageProblem(
                    f"{path}: no process reads this pipe"
                    if path.is_fifo()
                    else f"{path}: a socket or device that cannot be written to",
                    hint="start the process that reads it first, or name a file",
                ) from error
        time.sleep(0.05)
    os.set_blocking(descriptor, True)
    with disk_errors(path), open(descriptor, "wb") as handle:
        yield handle


def sync_folder(folder: Path) -> None:
    """Make the directory entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and directory entry below `folder` durable."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(root))


def is_full_disk(error: Exception) -> bool:
    """Whether `error` means that the disk is full.

    safetensors, faiss and Lucene raise types of their own, whose messages contain the system's.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in full
    return any(os.strerror(code) in str(error) for code in full)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


_REMEDIES = {
    errno.EROFS: "choose another path with -o or --cache-dir; a disk that fails may also have "
    "become read-only",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
}


def explained(error: Exception, path: Path | None = None) -> ResourceExhausted | None:
    """The error with a remedy if the disk is full or the system failed; None for another error.

    `path` is the output that was being written.
    """
    found = getattr(error, "filename", None) or path or "a file"
    if isinstance(error, AnceError):
        return None
    if is_full_disk(error):
        rest = "; nothing was written under this name" if path else ""
        return ResourceExhausted(
            f"{path or found}: no room left on the disk{rest}", hint=FREE_SPACE
        )
    if code := system_failure(error):
        return ResourceExhausted(
            f"{found}: cannot be read or written ({os.strerror(code)})",
            hint=_REMEDIES.get(code, _CHECK_DISK),
        )
    return None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or failing disk into an error that names the output and the next step."""
    try:
        yield
    except Exception as error:
        problem = explained(error, path)
        if problem is None:
            raise
        raise problem from error


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Write `path` whole or not at all: on an error the old file stays."""
    partial = partial_name(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_partial_file(partial) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with new_file(path) as handle:
        handle.write(data)


def append_line(path: Path, line: bytes) -> None:
    """Append one record to a ledger, durably.

    If a killed process left an incomplete last record (no newline at the end), that record is
    removed first. The lock keeps this from removing what another process appends meanwhile.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", opener=_opener) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = handle.seek(0, os.SEEK_END)
            if size:
                handle.seek(size - 1)
                if handle.read(1) != b"\n":
                    handle.seek(0)
                    handle.truncate(handle.read().rfind(b"\n") + 1)
                    handle.seek(0, os.SEEK_END)
            handle.write(line.rstrip(b"\n") + b"\n")
            handle.flush()
            os.fsync(handle.fileno())


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False if the kernel or the file system cannot (renameat2)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done = renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    return bool(done == 0)


def _set_modes(folder: Path) -> None:
    """Give every file in `folder` the mode that the umask gave the folder: safetensors writes
    files that only their owner can read."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for root, _, names in os.walk(folder):
        for path in (os.path.join(root, name) for name in names):
            if not os.path.islink(path) and stat.S_IMODE(os.stat(path).st_mode) != mode:
                os.chmod(path, mode)


def publish_folder(partial: Path, path: Path) -> None:
    """Rename the finished folder `partial` to `path`, replacing an earlier folder."""
    with disk_errors(path):
        _set_modes(partial)
        sync_tree(partial)
        if not path.exists():
            os.rename(partial, path)
        elif _exchange(partial, path):
            remove(partial)
        else:  # no exchange: `path` does not exist for a moment between the two renames
            aside = path.with_name(f".{path.name}.replaced")
            remove(aside)
            os.rename(path, aside)
            os.rename(partial, path)
            remove(aside)
        sync_folder(path.parent)


def point(link: Path, target: Path) -> None:
    """Point the symbolic link `link` to `target`, relative to the link's folder, in one step.

    A folder under this name is replaced: copying a run can turn the link into a folder.
    """
    partial = partial_name(link)
    remove(partial)
    if link.is_dir() and not link.is_symlink():
        remove(link)
    with disk_errors(link):
        os.symlink(os.path.relpath(target, link.parent), partial)
        os.replace(partial, link)
        sync_folder(link.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists.

    A folder is renamed first, so that no reader sees a folder that is partly removed.
    """
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".{path.name.lstrip('.')}.removed")
        if doomed != path:
            if doomed.is_symlink():
                doomed.unlink()
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, *endings: str) -> None:
    """Remove the remains of killed writers in `folder`, named `.NAME.ENDING`."""
    for ending in endings:
        for path in folder.glob(f".*.{ending}"):
            remove(path)
