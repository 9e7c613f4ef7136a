"""Reads files that may be missing, half written or damaged, without raising an error.

For commands that only show the state of a run. A damaged file is described in the list `damage`, if
the caller passes one; a missing file is not damage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput
from ance_cli.formats.records import parse_record, read_record


def object_in(path: Path, damage: list[str] | None = None) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or damaged."""
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
    """The readable records of a ledger, or of its last `last_bytes` bytes."""
    try:
        with open(path, "rb") as handle:
            if last_bytes and os.fstat(handle.fileno()).st_size > last_bytes:
                handle.seek(-last_bytes, os.SEEK_END)
                handle.readline()
            lines = handle.read().split(b"\n")
    except FileNotFoundError:  # not written yet, or being replaced at this moment
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
        _note(damage, f"{path}:{broken[0]}: is not a JSON object ({len(broken)} broken lines)")
    return found


def _note(damage: list[str] | None, what: str) -> None:
    if damage is not None:
        damage.append(what)
