"""How a run of the program ends: errors shown with their hint, and the exit code."""

from __future__ import annotations

from collections.abc import Callable

from ance_cli.errors import AnceError, MachineGaveOut, Stopped, UsageProblem


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has a type for its GPUs and only words for the CPU."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "can't allocate memory" in str(error)


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
        stderr.print("stopped; what is finished is kept: the same command continues")
        return stop.exit_code
    except PermissionError as error:
        show_error(
            UsageProblem(
                f"{error.filename}: this user may not write or read there",
                hint="check the permissions, or choose another place with -o or --cache-dir",
            )
        )
        return UsageProblem.exit_code
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        problem = MachineGaveOut(
            "memory ran out", hint="close other programs, or lower --batch-size or --batch-tokens"
        )
        show_error(problem)
        return problem.exit_code
    return 0
