"""The summary that a command returns: its output, whether that was up to date, and its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ance_cli.formats.plan import Plan

Summary = dict[str, Any]


def summary_of(manifest: dict[str, Any], output: Path, up_to_date: bool) -> Summary:
    """The summary of an artifact from its manifest."""
    return {
        "output": str(output),
        "kind": manifest["kind"],
        "up_to_date": up_to_date,
        "fingerprint": manifest["fingerprint"],
        **manifest["stats"],
    }


class Clock:
    """Measures the seconds of the named parts of a command's work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)


def made(plan: Plan, stats: dict[str, Any]) -> Summary:
    """The summary of a text artifact that was just written."""
    return summary_of(
        {"kind": plan.kind, "fingerprint": plan.fingerprint, "stats": stats}, plan.output, False
    )


def planned(kind: str, output: Path, shaped_by: dict[str, Any]) -> Summary:
    """The summary of a dry run: what would be made."""
    return {"output": str(output), "kind": kind, "up_to_date": False, "dry_run": True, **shaped_by}
