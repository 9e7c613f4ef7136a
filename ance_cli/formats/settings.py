"""Settings in TOML: `ance.toml`, or what `--config` names.

A table has the name of a command and holds its flags by their long names; `[all]` holds what
several commands share. Shared keys have a table of their own and do not stand at the top, since
`index` and `refresh` name a command and a flag each, and TOML has one place for a name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.errors import UsageProblem

FILE = "ance.toml"
SHARED = "all"

_TABLE = re.compile(r"""\s*\[\s*["']?([\w-]+)["']?\s*\]""")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")


@dataclass(frozen=True)
class Setting:
    """A value as TOML has it, and `file:line` of its key (`file` where the line is not known)."""

    value: Any
    where: str


def read_settings(path: Path) -> dict[str, dict[str, Setting]]:
    """Table -> key -> setting; keys with hyphens, as the flags are written.

    Raises `UsageProblem` where there is no such file, or it is no TOML, or a key has no table.
    """
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise UsageProblem(
            f"{path}: {error.strerror}", hint="--config names a TOML file, or is none"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageProblem(f"{path}: not valid UTF-8, which TOML is written in") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{path}:{line[1]}" if line else str(path)
        raise UsageProblem(
            f"{place}: not valid TOML: {error}", hint='a setting looks like split = "train"'
        ) from error
    lines = _lines(text)

    def where(table: str, key: str) -> str:
        line = lines.get((table, key))
        return f"{path}:{line}" if line else str(path)

    found: dict[str, dict[str, Setting]] = {}
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise UsageProblem(
                f"{where('', table)}: {table!r} stands outside of a table",
                hint=f"settings of one command stand under its name, as [encode], those of several "
                f"under [{SHARED}]",
            )
        found[table] = {}
        for key, value in values.items():
            name = key.replace("_", "-")
            if name in found[table]:
                raise UsageProblem(f"{where(table, key)}: [{table}] has {name!r} twice")
            found[table][name] = Setting(value, where(table, key))
    return found


def _lines(text: str) -> dict[tuple[str, str], int]:
    """(table, key) -> its line, for keys that stand on a line of their own; tomllib tells none."""
    lines: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = header[1]
        elif key := _KEY.match(line):
            lines.setdefault((table, key[1]), number)
    return lines


def to_toml(value: str | bool | int | float) -> str:
    """A value as it stands in the file; JSON's way of quoting is one of TOML's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
