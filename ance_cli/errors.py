"""Every failure that a person can act on, with an exit code that shows a script its kind.

An `AnceError` says what was found and where; its `hint` names the next command or edit. Any other
exception that escapes a command is a bug in ance and ends with a traceback and exit code 1.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_BUG = 1

_NO_MEMORY = (
    "allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "StandardGpuResources: alloc fail",
    "failed to cudaHostAlloc",
)
"""Messages of torch and FAISS for which they have no exception type: CPU memory, mappings, their
libraries, FAISS on a GPU."""

_SYSTEM_FAILURES = (
    errno.EIO, errno.ESTALE, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOLCK,
    errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG, errno.ENOTCONN,
)  # fmt: skip
"""Errors of the system for which neither the command nor the data is to blame."""

_REASON_LENGTH = 300
"""The most characters shown of another library's message."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class AnceError(Exception):
    """A failure with a remedy.

    `what` is one sentence: what was found, where, and what was expected. `hint` is the next step.
    """

    exit_code = EXIT_BUG

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class UsageProblem(AnceError):
    """The command line or the configuration asks for something impossible."""

    exit_code = 2


class BadInput(AnceError):
    """Data from outside is broken: `what` begins with `file:line:` if a line is known."""

    exit_code = 3


class Mismatch(AnceError):
    """Artifacts do not belong together, or the output exists with other settings."""

    exit_code = 4


class ResourceExhausted(AnceError):
    """Disk or memory ran out, the disk fails, or a part of the installation fails; finished work is
    kept."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: an errno from the system, or a type or message from torch or
    FAISS."""
    return (
        type(error).__name__ in ("MemoryError", "OutOfMemoryError")
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(words in str(error) for words in _NO_MEMORY)
    )


def system_failure(error: BaseException) -> int | None:
    """The errno if a disk, a file system or a limit of the system failed; otherwise None.

    safetensors, faiss and Lucene raise types of their own, whose messages contain the system's.
    """
    if isinstance(error, AnceError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _SYSTEM_FAILURES else None
    return next((code for code in _SYSTEM_FAILURES if os.strerror(code) in str(error)), None)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to a system's error in the block: one from reading an open file has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def as_bad_input(what: str, hint: str) -> Iterator[None]:
    """Turn an exception in the block into `BadInput`, with its reason in parentheses after `what`.

    For the readers of other libraries, which raise many types for a broken file. Only the first
    sentence of their message is shown: torch continues with how to run the code in the file,
    transformers with its hub. Our own errors, and those of a system that fails or is out of memory,
    are raised unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AnceError) or is_out_of_memory(error) or system_failure(error):
            raise
        sentence = " ".join(str(error).split()).split(". ")[0].removesuffix(".")
        reason = sentence[:_REASON_LENGTH] or type(error).__name__
        raise BadInput(f"{what} ({reason})", hint=hint) from error


class Busy(AnceError):
    """Somebody else is writing the output."""

    exit_code = 6


class Diverged(AnceError):
    """Training produced a loss or a gradient that is not finite."""

    exit_code = 7


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an `Exception`, so that no handler swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.exit_code = 128 + signum


_held: list[int] | None = None
_AGAIN_SECONDS = 0.05


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    if _held is not None:
        _held.append(signum)
    else:
        raise Stopped(signum)


def _on_unraisable(dropped: sys.UnraisableHookArgs) -> None:
    """Repeat a signal that arrived inside a destructor, where Python drops every exception."""
    if not isinstance(dropped.exc_value, Stopped):
        sys.__unraisablehook__(dropped)
        return
    signum = dropped.exc_value.signum

    def again(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code is _on_unraisable.__code__:  # it has not returned yet
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            _on_signal(signum, frame)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def install_signal_handlers() -> None:
    """Raise `Stopped` in the main thread on SIGINT and SIGTERM."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    sys.unraisablehook = _on_unraisable


@contextmanager
def hold_signals() -> Iterator[list[int]]:
    """Collect signals instead of raising them, so that a training step is never cut in two.

    Yields the list of the signals collected so far, which the caller checks between steps. If the
    list is not empty when the block ends, `Stopped` is raised.
    """
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    noted: list[int] = []
    _held = noted
    try:
        yield noted
    finally:
        _held = None
    if noted:
        raise Stopped(noted[0])


def die_with_parent(signum: int) -> None:
    """Ask the kernel to send this process `signum` when its parent ends (Linux only).

    This also runs between fork and exec, so it calls only functions that were looked up before.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signum)
