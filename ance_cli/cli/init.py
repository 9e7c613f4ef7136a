"""`ance init`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMANDS, LOADS, READS, command
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt, DatasetPath
from ance_cli.config.setting import flag_of, key_of
from ance_cli.config.toml_file import SHARED, to_toml
from ance_cli.formats.summary import Summary

if TYPE_CHECKING:
    from ance_cli.setup.init import Table

_WIDTH = 100

_HEAD = """\
Settings of the ance commands in this folder. The command line overrides them. Keys are the flags'
long names; paths are relative to this folder. A line like #key = value shows a default: remove the
# to set it. `ance COMMAND --help` lists every flag.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "init",
        "Start here",
        takes=("dry_run", "quiet", "json", "force", *LOADS, *READS),
    )
    def init(
        call: Call, asked: CallSettings, *, folder: DatasetPath, ckpt: Ckpt | None = None
    ) -> Summary | None:
        """Check a dataset folder and write ance.toml, so that its commands need few flags.

        Reads all of the data and proposes settings that fit it. The cycle starts from --ckpt, with
        which some training steps are timed.

        Example: `ance init data/medquad --ckpt bert-base-uncased/`
        """
        from ance_cli.setup.init import init as stage

        made = stage(folder, settings_text, ckpt=ckpt, call=call)
        if asked.json:
            return made
        from ance_cli.cli.console import show_next, show_skipped, show_summary

        next_steps = made.pop("next")
        show_skipped(call.skipped)
        show_summary(made, as_json=False, quiet=asked.quiet)
        if not asked.quiet:
            show_next(next_steps)
        return None


def settings_text(tables: Sequence[Table]) -> str:
    """The text of the file: each table with its settings, and commented flags with their help."""
    lines = [*_comment(_HEAD), ""]
    for table in tables:
        lines += [*_comment(table.about), f"[{table.name}]"]
        lines += [f"{key_of(name)} = {to_toml(value)}" for name, value in table.settings.items()]
        lines.append("")
        for name in table.offered:
            lines += [*_offer(table.name, name), ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False)]


def _offer(table: str, key: str) -> list[str]:
    """The help of a flag and its default; a flag without a default shows its first choice."""
    commands = COMMANDS.values() if table == SHARED else [COMMANDS[table]]
    each = next(
        each for command in commands for each in command.settings if flag_of(key) in each.flags
    )
    text, default = each.setting.help, each.default
    if each.choices:
        text += f" One of {', '.join(each.choices)}"
        text += "." if default else "; none by default."
        default = default or each.choices[0]
    return [*_comment(text), f"#{key_of(key)} = {to_toml(default)}"]
