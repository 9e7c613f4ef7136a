"""How a run of the program ends: errors shown with their hint, and the exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ance_cli.errors import AnceError, ResourceExhausted, Stopped, UsageProblem, is_out_of_memory
from ance_cli.formats.atomic import FREE_SPACE, is_full_disk

_NO_SUCH_PLACE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""The paths on the command line do not fit what exists there."""


def _explained(error: Exception) -> AnceError | None:
    """What a person can do about a failed system call, or memory that ran out; None where that is
    not known."""
    if is_out_of_memory(error):
        return ResourceExhausted(
            "memory ran out", hint="close other programs, or lower --batch-size or --batch-tokens"
        )
    if not isinstance(error, OSError):
        return None
    if is_full_disk(error):
        return ResourceExhausted(
            f"{error.filename or 'a file'}: no room left on the disk",
            hint=FREE_SPACE,
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return UsageProblem(
            f"{error.filename}: permission denied",
            hint="check the permissions, or choose another place with -o or --cache-dir",
        )
    if error.errno in _NO_SUCH_PLACE:
        named = str(error.filename)
        return UsageProblem(
            f"{named if len(named) < 300 else named[:300] + '...'}: nothing can be written or read "
            f"there ({os.strerror(error.errno)})",
            hint="a file is where a folder is expected, or the reverse: check the paths",
        )
    return None


def exit_code_of(program: Callable[[], None]) -> int:
    """Run a program to its end; what went wrong is shown on stderr."""
    try:
        return _run(program)
    except Stopped as stop:  # while the words of another end were shown
        return stop.exit_code


def _run(program: Callable[[], None]) -> int:
    from ance_cli.cli.console import show_error, stderr

    try:
        program()
    except SystemExit as leave:  # typer has shown its own usage errors
        return leave.code if isinstance(leave.code, int) else 0
    except AnceError as error:
        show_error(error)
        return error.exit_code
    except Stopped as stop:
        stderr.print("stopped; finished work is kept: run the same command to continue")
        return stop.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        problem = _explained(error)
        if problem is None:
            raise
        show_error(problem)
        return problem.exit_code
    return 0
