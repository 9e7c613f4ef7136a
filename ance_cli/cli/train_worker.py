"""One rank of `ance train-segment` on several devices, as torchrun starts it:
`python -m ance_cli.cli.train_worker RUN`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path

from ance_cli.cli.exit import exit_code_of
from ance_cli.errors import AnceError, Stopped, die_with_parent, install_signal_handlers


def train(run_folder: Path) -> None:
    """Join the other ranks and train the job that the run folder describes."""
    from ance_cli.cli.console import ConsoleReporter, show_error
    from ance_cli.formats.run_folder import RunFolder
    from ance_cli.progress import Silent
    from ance_cli.training.train_worker import join_segment

    def reporter(is_main: bool, quiet: bool) -> ConsoleReporter | Silent:
        return ConsoleReporter(quiet) if is_main else Silent()

    def on_lost(error: AnceError) -> None:
        show_error(error)
        leave(error.exit_code)

    join_segment(RunFolder(run_folder), reporter, on_lost)


def leave(code: int) -> None:
    """End the process without shutting down the interpreter.

    The threads of gloo outlive the process group, and sometimes abort a process that succeeded.
    """
    if code == 0:  # after a failure, exit functions would report a group that no longer exists
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)  # the parent holds the run's lease
    if os.getppid() == 1:
        leave(1)
    install_signal_handlers()
    codes = []
    try:
        codes.append(exit_code_of(lambda: train(Path(sys.argv[1]))))
        for number in (signal.SIGINT, signal.SIGTERM):  # the exit code is decided
            signal.signal(number, signal.SIG_IGN)
    except Stopped as stop:  # torchrun ends this rank because of another one
        codes.append(stop.exit_code)
    leave(codes[0])
