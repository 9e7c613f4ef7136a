"""How a command was called: what all commands share, apart from what each should make."""

from __future__ import annotations

from dataclasses import dataclass, field

from ance_cli.errors import BadInput
from ance_cli.progress import Reporter, Silent


@dataclass
class SkippedLines:
    """Broken lines that `--skip-bad` passed over, each once however often a file is read."""

    reasons: dict[str, None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.reasons)

    def note(self, problem: BadInput) -> None:
        self.reasons[problem.what] = None


@dataclass(frozen=True)
class Call:
    """How a command was called, as opposed to what it should make."""

    reporter: Reporter = field(default_factory=Silent)
    skipped: SkippedLines | None = None
    """Collects the bad lines that are skipped; None: stop at the first bad line."""
    force: bool = False
    dry_run: bool = False
    threads: int = 0
    """0 = every core."""
    quiet: bool = False
