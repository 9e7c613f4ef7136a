"""Runs the guides and writes what they print into their blocks: `python -m tests.regenerate_guides
[NAME ...]`. What still matches stays as it is written."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.guides import GUIDES, RUN_ELSEWHERE, output_matches, rewritten, run_all, steps_of


def regenerate(path: Path, scratch: Path) -> int:
    """Rewrite one guide; returns how many of its outputs changed."""
    page = path.read_text()
    lines = page.splitlines()
    changed = []
    try:
        for step, text in run_all(page, scratch):
            printed = text.splitlines()
            if not output_matches(step.expected, printed):
                changed.append((step, rewritten(step.expected, printed, scratch)))
            print(f"{path.name}:{step.first}: {step.source.splitlines()[0]}", flush=True)
    finally:  # what ran before a failure is kept
        for step, renewed in reversed(changed):
            lines[step.first : step.first + len(step.expected)] = renewed
        path.write_text("\n".join(lines) + "\n")
    return len(changed)


def main(names: list[str]) -> None:
    """Regenerate the named guides, or all of them."""
    chosen = [path for path in GUIDES if not names or path.stem in names]
    for path in chosen:
        if path.name in RUN_ELSEWHERE or not steps_of(path.read_text()):
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ANCE_CACHE_DIR"] = f"{folder}/cache"
            scratch = Path(folder) / "scratch"
            print(f"{path.name}: {regenerate(path, scratch)} outputs changed")


if __name__ == "__main__":
    main(sys.argv[1:])
