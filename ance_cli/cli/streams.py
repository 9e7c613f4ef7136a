"""Gives a program that was started with closed streams (`2>&-`, a daemon) streams again.

Importing this module does it. Otherwise the first file that is opened gets the number of the closed
stream, and everything that is printed or logged is written into it.
"""

from __future__ import annotations

import io
import os
import sys

from ance_cli.errors import UsageProblem


class _Closed(io.RawIOBase):
    """A stream that nobody reads: what is written to it is an error and not lost in silence."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise UsageProblem("stdout is closed", hint="redirect it, for instance: > FILE")


def open_closed_streams() -> None:
    """Open /dev/null in place of stdin, stdout and stderr, where they are closed.

    `sys.stdin` stays None, so that a command that has to read it can refuse to; a command that
    writes to the closed stdout fails.
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
