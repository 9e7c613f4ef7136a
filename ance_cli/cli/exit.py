"""Turns the end of the program into an exit code, and shows errors with their hints."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from ance_cli.errors import AnceError, ResourceExhausted, Stopped, UsageProblem, is_out_of_memory
from ance_cli.formats.atomic import explained

_BAD_PATH = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""Errors for a path that cannot be used, for instance because a file is in place of a folder."""


def _explained(error: Exception) -> AnceError | None:
    """The error with a remedy, for a failed system or a lack of memory; None if unknown."""
    if is_out_of_memory(error):
        return ResourceExhausted(
            "memory ran out", hint="close other programs, or lower --batch-size or --batch-tokens"
        )
    if "surrogates not allowed" in str(error):  # a byte of a file's name that is not UTF-8
        return UsageProblem(
            f"a file or folder has a name that is not valid UTF-8: {_name_of(error)}",
            hint="rename it, so that its name can be written into JSON",
        )
    if problem := explained(error):
        return problem
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENAMETOOLONG:
        name = os.path.basename(os.fsdecode(error.filename or ""))
        return UsageProblem(
            f"{name[:60]}...: the name has {len(os.fsencode(name))} bytes, more than the file "
            f"system allows; ance adds up to 55 bytes to the name of an output",
            hint="choose a shorter name",
        )
    if isinstance(error, PermissionError):
        return UsageProblem(
            f"{error.filename}: permission denied",
            hint="check the permissions, or choose another path with -o or --cache-dir",
        )
    if error.errno in _BAD_PATH:
        path = str(error.filename)
        return UsageProblem(
            f"{path if len(path) < 300 else path[:300] + '...'}: cannot be read or written "
            f"({os.strerror(error.errno)})",
            hint="check the paths: a file may be in place of a folder, or the reverse",
        )
    return None


def _name_of(error: Exception) -> str:
    """The text that could not be encoded, its bytes escaped; json libraries do not tell it."""
    text = error.object if isinstance(error, UnicodeEncodeError) else "see the paths of the command"
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _silence_torchao() -> None:
    """Where torchao is installed, transformers imports it, and it warns about kernels that nothing
    here uses."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def exit_code_of(program: Callable[[], None]) -> int:
    """Run a program and return its exit code; errors are shown on stderr."""
    _silence_torchao()
    try:
        return _run(program)
    except Stopped as stop:  # while another error was being shown
        return stop.exit_code


def _run(program: Callable[[], None]) -> int:
    from ance_cli.cli.console import show_error, stderr
    from ance_cli.cli.streams import check_stdout

    try:
        code = _code_of(program)
        if code == 0:
            check_stdout()
        return code
    except AnceError as error:
        show_error(error)
        return error.exit_code
    except Stopped as stop:
        stderr.print("stopped; finished work is kept: run the same command to continue")
        return stop.exit_code
    except Exception as error:
        problem = _explained(error)
        if problem is None:
            raise
        show_error(problem)
        return problem.exit_code


def _code_of(program: Callable[[], None]) -> int:
    try:
        program()
    except SystemExit as leave:  # typer has already shown its usage errors
        return leave.code if isinstance(leave.code, int) else 0
    return 0
