"""An output that is, or holds, what it is made of would replace it: with --force, for good."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ance_cli.errors import UsageProblem
from ance_cli.formats.jsonl import STDIO


def refuse_own_sources(output: Path, sources: Iterable[Path | None]) -> None:
    """Raises `UsageProblem` where the output is one of the sources or a folder above one."""
    if output == STDIO:
        return
    for source in filter(None, sources):
        place = source.resolve()
        if output.resolve() in (place, *place.parents):
            raise UsageProblem(
                f"{output}: is or holds the source {source}", hint="name another place with -o"
            )
