"""JSON records on disk, checked against a declared type.

A type is a dataclass, a TypedDict, or a plain type such as `list[int]`. Types are strict: a string
is no number, true is no integer, and only an integer may replace a float. Keys that the type does
not declare are ignored, so that a later version may add some.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import orjson

from ance_cli.errors import BadInput, naming
from ance_cli.formats.hashing import hash_json

T = TypeVar("T")


def read_record(path: Path, kind: type[T], hint: str | None = None) -> T:
    """Read the record in a JSON file.

    Raises `FileNotFoundError` if there is no file, and `BadInput` if it contains something else.
    """
    with naming(path):
        data = path.read_bytes()
    return parse_record(data, kind, str(path), hint)


HASH = "xxh3"
"""The field of a record that has the hash of its other fields; version 0.1.0 wrote none."""


def with_hash(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its own hash, by which `check_hash` finds later changes."""
    return {**record, HASH: hash_json(record)}


def check_hash(path: Path, record: dict[str, Any], hint: str) -> None:
    """Raise `BadInput` if the record in a file differs from its own hash, if it has one."""
    if HASH in record and record != with_hash({k: v for k, v in record.items() if k != HASH}):
        raise BadInput(
            f"{path}: was changed after ance wrote it: its content differs from its field {HASH!r}",
            hint=hint,
        )


def parse_record(data: bytes, kind: type[T], where: str, hint: str | None = None) -> T:
    """Parse the record in `data`; the message of `BadInput` begins with `where`."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{where}: not valid JSON ({error})", hint=hint) from error
    return check_record(value, kind, where, hint)


def check_record(value: Any, kind: type[T], where: str, hint: str | None = None) -> T:
    """Convert a decoded JSON value to a record; the message of `BadInput` begins with `where`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadInput(f"{where}: {_reworded(str(error), kind)}", hint=hint) from error


_MISSING, _NOT_LISTED = "Object missing required field ", "Invalid enum value "


def _reworded(message: str, kind: Any) -> str:
    """A message of msgspec in our words, beginning with the name of the field.

    Its messages read "Expected `int`, got `str` - at `$.steps`", "Object missing required field
    `steps`" and "Invalid enum value 'x' - at `$.mode`".
    """
    problem, _, place = message.replace("`", "").partition(" - at ")
    field = place.removeprefix("$").removeprefix(".")
    if problem.startswith(_MISSING):
        name = problem.removeprefix(_MISSING)
        return f"has no {field}.{name}" if field else f"has no {name}"
    if problem.startswith(_NOT_LISTED):
        expected, found = _choices(kind, field), problem.removeprefix(_NOT_LISTED)
    else:
        expected, _, found = problem.removeprefix("Expected ").partition(", got ")
    expected = expected.replace("object", "a JSON object").replace("array", "a list")
    reworded = f"expected {expected}, found {found}" if found else problem
    return f"{field!r}: {reworded}" if field else reworded


def _choices(kind: Any, field: str) -> str:
    """The values of a field that is a `Literal`."""
    declared = get_type_hints(kind).get(field) if isinstance(kind, type) else None
    values = get_args(declared) if get_origin(declared) is Literal else ()
    return f"one of {', '.join(values)}" if values else "another value"
