"""How long a person waits before anything happens: `--help`, and a command that is up to date.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ance_cli.config import DemoConfig
from ance_cli.progress import Silent
from ance_cli.setup.docstrings import docstring_dataset


def seconds_of(arguments: list[str], cwd: Path) -> float:
    """The median of seven runs."""
    found = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ance_cli", *arguments], cwd=cwd, check=True,
                       capture_output=True)  # fmt: skip
        found.append(time.perf_counter() - started)
    return sorted(found)[3]


def main() -> None:
    scratch = Path(tempfile.mkdtemp())
    docstring_dataset(scratch / "data", DemoConfig(), Silent())
    bm25 = ["bm25-negatives", "--data", "data", "-o", "bm25.jsonl"]
    subprocess.run([sys.executable, "-m", "ance_cli", *bm25], cwd=scratch, check=True,
                   capture_output=True)  # fmt: skip
    table = Table("command", "seconds (median of 7)", box=None)
    for arguments in (["--help"], ["encode", "--help"], bm25):
        table.add_row("ance " + " ".join(arguments), f"{seconds_of(arguments, scratch):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
