"""`ance init`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.options import COMMANDS, Flags, command
from ance_cli.cli.runner import run_stage
from ance_cli.formats.settings import SHARED, to_toml
from ance_cli.formats.summary import Summary
from ance_cli.setup.init import Table

_WIDTH = 100

_HEAD = """\
Settings of the ance commands in this folder. The command line goes before them. Keys are the
flags' long names, paths are those from this folder. A line like #key = value shows a default: take
its # away to set it. `ance COMMAND --help` lists every flag.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "init",
        "ckpt skip_bad force dry_run quiet json",
        arguments={"folder": (Path, ..., "Dataset folder in the BEIR layout.")},
        panel="Start here",
    )
    def init(flags: Flags) -> None:
        """Look at a dataset folder and write ance.toml, so that its commands need few flags.

        Reads all of the data, tells what is there, and fails where it is broken. With --ckpt the
        cycle starts from that encoder.

        Example: `ance init data/medquad --ckpt bert-base-uncased/`
        """
        from ance_cli.setup.init import init as stage

        next_steps: list[str] = []

        def look(call: Call) -> Summary:
            made = stage(
                flags.folder,
                settings_text,
                ckpt=flags.ckpt,
                call=call,
            )
            if not flags.json:
                next_steps.extend(made.pop("next"))
            return made

        run_stage(flags, look)
        if not flags.quiet and next_steps:
            from ance_cli.cli.console import stderr

            stderr.print("next:", *next_steps, sep="\n  ", markup=False)


def settings_text(tables: Sequence[Table]) -> str:
    """The file: each table with what it sets, and the flags it offers with help and default."""
    lines = [*_comment(_HEAD), ""]
    for table in tables:
        lines += [*_comment(table.about), f"[{table.name}]"]
        lines += [f"{key} = {to_toml(value)}" for key, value in table.settings.items()]
        lines.append("")
        for name in table.offered.split():
            lines += [*_offer(table.name, name), ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False)]


def _offer(table: str, key: str) -> list[str]:
    """The help of a flag and its default; a flag without one shows the first of its choices."""
    commands = COMMANDS.values() if table == SHARED else [COMMANDS[table]]
    name = f"--{key.replace('_', '-')}"
    flag, default = next(
        (flag, default)
        for command in commands
        for names, flag, default in command.flags
        if f"`{name}`" in names
    )
    text = flag.help
    if issubclass(flag.type, StrEnum):
        choices = [choice.value for choice in flag.type]
        text += f" One of {', '.join(choices)}"
        text += "." if default else "; none by default."
        default = default or choices[0]
    return [*_comment(text), f"#{name.removeprefix('--')} = {to_toml(default)}"]
