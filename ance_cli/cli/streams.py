"""Gives a program that was started with closed streams (`2>&-`, a daemon) streams again.

Importing this module does it. Otherwise the first file that is opened gets the number of the closed
stream, and everything that is printed or logged is written into it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from ance_cli.errors import UsageProblem


class _Closed(io.RawIOBase):
    """A stdout that nobody reads. A library's print into it ends no work: that something was lost
    is told at the end."""

    something_lost = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.something_lost = True
        return len(data)


def check_stdout() -> None:
    """Raise `UsageProblem` if something was written to a closed stdout."""
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, _Closed) and raw.something_lost:
        raise UsageProblem(
            "stdout is closed: what was printed is lost", hint="redirect it, for instance: > FILE"
        )


def open_closed_streams() -> None:
    """Open /dev/null in place of stdin, stdout and stderr, where they are closed.

    `sys.stdin` stays None, so that a command that has to read it can refuse to.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(_Closed(), encoding="utf-8", write_through=True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)


open_closed_streams()
