"""Settings in TOML: `ance.toml`, or the file that `--config` names.

A table is named after a command and holds its flags by their long names; `[all]` holds flags for
every command that takes them. Shared keys are not at the top level because `index` and `refresh`
are both a command and a flag, and TOML allows a name only once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.config.setting import key_of
from ance_cli.errors import UsageProblem, system_failure

FILE = "ance.toml"
SHARED = "all"
NONE = "none"
"""`--config none` reads no file."""

_TABLE = re.compile(r"""\s*\[\s*["']?([\w-]+)["']?\s*\]""")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")


@dataclass(frozen=True)
class Setting:
    """A value from TOML, and `file:line` of its key (`file` if the line is not known)."""

    value: Any
    where: str


def read_settings(path: Path) -> dict[str, dict[str, Setting]]:
    """Table -> key -> setting; keys with hyphens, as the flags are written.

    Raises `UsageProblem` if the file does not exist or is not TOML, or if a key is in no table.
    """
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        if system_failure(error):
            raise
        raise UsageProblem(
            f"{path}: {error.strerror}", hint="name a TOML file with --config, or use --config none"
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
                f"{where('', table)}: {table!r} is outside of a table",
                hint="put settings of one command under its name, for instance [encode], and "
                f"settings of several commands under [{SHARED}]",
            )
        found[table] = {}
        for key, value in values.items():
            name = key_of(key)
            if name in found[table]:
                raise UsageProblem(f"{where(table, key)}: [{table}] has {name!r} twice")
            found[table][name] = Setting(value, where(table, key))
    return found


def _lines(text: str) -> dict[tuple[str, str], int]:
    """(table, key) -> line, for keys on a line of their own; tomllib reports no lines."""
    lines: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = header[1]
        elif key := _KEY.match(line):
            lines.setdefault((table, key[1]), number)
    return lines


def to_toml(value: str | bool | int | float) -> str:
    """A value as TOML text; JSON's quoting is valid TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
