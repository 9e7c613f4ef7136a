"""How a command was called: the settings that all commands share."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from ance_cli.errors import BadInput
from ance_cli.progress import Reporter, Silent

MODULE = (sys.executable, "-P", "-m")
"""How a module of ours is started as a child process: -P keeps the working folder, and a `queue.py`
in it, off the module search path."""


TRUST = "ANCE_TRUST_REMOTE_CODE"


def trusts_remote_code() -> bool:
    """Whether the caller lets code that lies in a checkpoint run (`--trust-remote-code`).

    A variable of the environment carries it, so that the processes of one command agree.
    """
    return os.environ.get(TRUST) == "1"


@dataclass
class SkippedLines:
    """Broken lines that `--skip-bad` skipped; a line counts once, even if it is read twice."""

    reasons: dict[str, None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.reasons)

    def note(self, problem: BadInput) -> None:
        self.reasons[problem.what] = None


@dataclass(frozen=True)
class Call:
    """Settings of a call that do not concern what the command makes."""

    reporter: Reporter = field(default_factory=Silent)
    skipped: SkippedLines | None = None
    """Collects the bad lines that are skipped; None: stop at the first bad line."""
    force: bool = False
    dry_run: bool = False
    threads: int = 0
    """0 = every core."""
    quiet: bool = False
