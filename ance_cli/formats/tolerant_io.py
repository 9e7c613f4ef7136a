"""Reading what may be absent, half written or damaged, without stopping at it.

For those who only look at a run: they show what there is. What lies there and is not what it should
be is added to `damage`, where the caller gives a list for it; what is absent is not damage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput
from ance_cli.formats.records import parse_record, read_record


def object_in(path: Path, damage: list[str] | None = None) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none."""
    try:
        return read_record(path, dict[str, Any])
    except FileNotFoundError:
        return {}
    except OSError as error:
        _note(damage, f"{path}: could not be read ({error.strerror})")
        return {}
    except BadInput:
        _note(damage, f"{path}: is not a JSON object")
        return {}


def records_in(
    path: Path, last_bytes: int = 0, damage: list[str] | None = None
) -> list[dict[str, Any]]:
    """The records of a ledger, or those in its last bytes."""
    try:
        with open(path, "rb") as handle:
            if last_bytes and os.fstat(handle.fileno()).st_size > last_bytes:
                handle.seek(-last_bytes, os.SEEK_END)
                handle.readline()
            lines = handle.read().split(b"\n")
    except FileNotFoundError:  # none yet, or cut back in this moment
        return []
    except OSError as error:
        _note(damage, f"{path}: could not be read ({error.strerror})")
        return []
    found, broken = [], []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse_record(line, dict[str, Any], str(path)))
        except BadInput:
            if line and number < len(lines):  # a kill may cut the last line short
                broken.append(number)
    if broken:
        _note(damage, f"{path}:{broken[0]}: is not a JSON object ({len(broken)} such lines)")
    return found


def _note(damage: list[str] | None, what: str) -> None:
    if damage is not None:
        damage.append(what)
