"""Writes the command reference: `python -m ance_cli.cli.reference > docs/reference/commands.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import get_args

import ance_cli.cli.main  # noqa: F401 (registers the commands)
from ance_cli.cli.command import COMMANDS, CallFlag, Command
from ance_cli.config.setting import Declared, flag_of, has_default

_SHARED = 2
"""A flag that at least this many commands take with the same help is described once."""

_HEAD = """# Commands

Generated from the program by `just docs`. Each command lists its own flags; flags that several
commands share are described once, at the end.
"""


def reference() -> str:
    """The whole page."""
    flags = [each for one in COMMANDS.values() for each in one.settings if each.flags]
    uses = Counter(map(_identity, flags))
    described: dict[_Identity, Declared] = {}
    for each in (each for command in COMMANDS.values() for each in command.settings):
        if uses[_identity(each)] >= _SHARED:
            described.setdefault(_identity(each), each)
    page = [_HEAD]
    for command in COMMANDS.values():
        page += _section(command, described)
    page += ["## Shared flags", "", "A default that a command does not name is this one.", ""]
    of_the_call = [each for each in described.values() if each.name in get_args(CallFlag)]
    others = [each for each in described.values() if each.name not in get_args(CallFlag)]
    page += [
        "### Global flags",
        "",
        "A command takes all but those that it names.",
        "",
        *_listed(of_the_call),
    ]
    for panel in dict.fromkeys(each.setting.panel for each in others):
        rows = [each for each in others if each.setting.panel == panel]
        page += [f"### {panel}", "", *_listed(rows)]
    return "\n".join(page).rstrip() + "\n"


_Identity = tuple[str, str]


def _identity(each: Declared) -> _Identity:
    return each.name, each.setting.help


def _section(command: Command, shared: Mapping[_Identity, Declared]) -> list[str]:
    own = [each for each in command.settings if _identity(each) not in shared]
    also = [each for each in command.settings if _identity(each) in shared]
    lines = [f"## ance {command.name}", "", command.help, ""]
    if own:
        lines += _listed(own)
    named = [
        _with_default(each, shared[_identity(each)])
        for each in also
        if each.name not in get_args(CallFlag)
    ]
    if named:
        lines += [f"Shared flags: {', '.join(named)}.", ""]
    called = [each.name for each in also if each.name in get_args(CallFlag)]
    return [*lines, _of_the_call(called), ""] if called else lines


def _of_the_call(names: list[str]) -> str:
    left_out = [name for name in get_args(CallFlag) if name not in names]
    if len(left_out) > len(names):
        return f"Global flags: {_named(names)}."
    return f"Without {_named(left_out)}." if left_out else "All global flags."


def _named(names: list[str]) -> str:
    return ", ".join(f"`{flag_of(name)}`" for name in names)


def _with_default(each: Declared, described: Declared) -> str:
    """The flag, and its default where it differs from the one that is described."""
    name = f"`{each.flags[0]}`"
    if has_default(each) == has_default(described) and each.default == described.default:
        return name
    if not has_default(each):
        return f"{name} (required)"
    return f"{name} (optional)" if each.default is None else f"{name} (`{each.default}`)"


def _listed(settings: list[Declared]) -> list[str]:
    lines = []
    for each in settings:
        spelled = ", ".join(f"`{flag}`" for flag in each.flags) or f"`{each.name.upper()}`"
        notes = [each.setting.help.replace("<", "&lt;")]
        if each.choices:
            notes.append(f"One of {', '.join(f'`{choice}`' for choice in each.choices)}.")
        if not has_default(each):
            notes.append("Required.")
        elif each.default is not None and each.default is not False:
            notes.append(f"Default `{each.default}`.")
        lines.append(f"- {spelled}: {' '.join(notes)}")
    return [*lines, ""]


if __name__ == "__main__":
    print(reference(), end="")
