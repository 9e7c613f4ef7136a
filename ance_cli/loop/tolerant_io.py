"""Reads files that may be missing, half written or damaged, without raising an error.

For commands that only show the state of a run. A damaged file is described in the list `damage`, if
the caller passes one; a missing file is not damage. `kind` declares the types of some fields, for
instance one of `run_records`; a record that differs from it is damaged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput
from ance_cli.formats.records import check_record, parse_record, read_record


def object_in(
    path: Path, kind: Any = dict[str, Any], damage: list[str] | None = None
) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or damaged."""
    try:
        found = read_record(path, dict[str, Any])
        check_record(found, kind, str(path))
        return found
    except FileNotFoundError:
        return {}
    except OSError as error:
        _note(damage, f"{path}: could not be read ({error.strerror})")
        return {}
    except BadInput as problem:
        _note(damage, problem.what)
        return {}


def fitting(value: Any, kind: Any, where: str, damage: list[str] | None = None) -> dict[str, Any]:
    """A part of a record, if it fits the declared type; else empty."""
    try:
        check_record(value, kind, where)
    except BadInput as problem:
        _note(damage, problem.what)
        return {}
    return value or {}


def records_in(
    path: Path,
    kind: Any = dict[str, Any],
    damage: list[str] | None = None,
    last_bytes: int = 0,
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
            record = parse_record(line, dict[str, Any], f"{path}:{number}")
            check_record(record, kind, f"{path}:{number}")
            found.append(record)
        except BadInput as problem:
            if line and number < len(lines):  # a kill may cut the last line short
                broken.append(problem.what)
    if broken:
        _note(damage, f"{broken[0]} ({len(broken)} broken lines)")
    return found


def _note(damage: list[str] | None, what: str) -> None:
    if damage is not None:
        damage.append(what)
