"""Writes the command-line reference: `python -m ance_cli.cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import Any

import ance_cli.cli.main  # noqa: F401 (registers the commands)
from ance_cli.cli.flags import Flag
from ance_cli.cli.options import COMMANDS

_EXIT_CODES = """## Exit codes

| code | meaning |
|---|---|
| 0 | done, or already up to date |
| 1 | a bug in ance (with a traceback) |
| 2 | the command line or the configuration asks for something that cannot be |
| 3 | the input is broken |
| 4 | artifacts do not belong together, or the output exists with other settings |
| 5 | the machine gave out (disk, memory, installation); what was finished is kept |
| 6 | somebody else is writing the output |
| 7 | training diverged |
| 130, 143 | Ctrl-C, SIGTERM |
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _flag_row(names: str, flag: Flag, default: Any) -> str:
    notes = []
    if isinstance(flag.type, type) and issubclass(flag.type, StrEnum):
        notes.append("one of " + ", ".join(f"`{choice.value}`" for choice in flag.type))
    if default is ...:
        notes.append("required")
    elif default is not None and default is not False:
        notes.append(f"default `{default}`")
    return f"| {names} | {_cell(flag.help)} | {_cell('; '.join(notes))} |"


def reference() -> str:
    """The whole page, from the commands themselves."""
    page = [
        "# Command-line reference",
        "",
        "Made from the program itself (`just docs`); a test holds the two together.",
        "",
    ]
    for name, command in COMMANDS.items():
        page += [f"## ance {name}", "", command.help, ""]
        panels: dict[str, list[str]] = defaultdict(list)
        for argument, text, required in command.arguments:
            note = "required" if required else "optional"
            panels["Arguments"].append(f"| `{argument.upper()}` | {_cell(text)} | {note} |")
        for names, flag, default in command.flags:
            panels[flag.panel].append(_flag_row(names, flag, default))
        for panel, rows in panels.items():
            page += [f"| {panel} | | |", "|---|---|---|", *rows, ""]
    return "\n".join([*page, _EXIT_CODES])


if __name__ == "__main__":
    print(reference(), end="")
