"""`--config`: settings from a file, which the command line overrides.

They become the defaults of the command (the `default_map` of its context), as strings, so that the
parser of the command line parses, checks and overrides them.

An `ance.toml` that was found in the working folder may have come with a download. It may not set
what replaces, hides or connects (`Setting.only_asked`), nor an output outside of its folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from ance_cli.config.setting import Declared, key_of
from ance_cli.config.toml_file import FILE, NONE, SHARED, Setting, read_settings
from ance_cli.errors import UsageProblem

_FOUND = f"{__name__}.found"
_NAMES_A_PLACE = ("DIR", "FILE", "PATH")


def config_reader(
    settings: Mapping[str, Declared],
) -> Callable[[typer.Context, Path | None], Path | None]:
    """The callback of a command's `--config`, which runs before any other flag is parsed.

    `settings` are those of the command, by the names of its parameters.
    """

    def take_config(ctx: typer.Context, value: Path | None) -> Path | None:
        path = value or Path(FILE)
        if ctx.resilient_parsing or str(path) == NONE or (value is None and not path.exists()):
            return value
        tables = read_settings(path)
        assert ctx.parent is not None
        group: Any = ctx.parent.command
        options = {
            name: found for name, each in group.commands.items() if (found := _options_of(each))
        }
        _check_names(path, tables, options)
        own = options[str(ctx.command.name)]
        given = {**tables.get(SHARED, {}), **tables.get(str(ctx.command.name), {})}
        given = {key: setting for key, setting in given.items() if key in own}
        ctx.default_map = {
            own[key].name: _as_typed(ctx, own[key], key, setting, path.parent)
            for key, setting in given.items()
        }
        if value is None:
            for key, setting in given.items():
                name = own[key].name
                _check_harmless(settings[name], setting, ctx.default_map[name], path.parent)
            ctx.meta[_FOUND] = path
        return value

    return take_config


def _check_harmless(each: Declared, setting: Setting, value: Any, folder: Path) -> None:
    """Raise `UsageProblem` for a setting that a file of unknown origin may not have."""
    flag = each.flags[0]
    if each.setting.only_asked and value is not False:
        raise UsageProblem(
            f"{setting.where}: {key_of(each.name)} is not taken from an {FILE} that was found in "
            "the working folder, because the file may come from somebody else",
            hint=f"give {flag} on the command line, or name the file: --config {FILE}",
        )
    if each.setting.is_output and value != "-":
        inside = Path(os.path.realpath(folder))
        place = Path(os.path.realpath(value))
        if place == inside or not place.is_relative_to(inside):
            raise UsageProblem(
                f"{setting.where}: {key_of(each.name)} = {setting.value!r} is outside of the "
                f"file's folder, and the {FILE} that was found there may come from somebody else",
                hint=f"give {flag} on the command line, or name the file: --config {FILE}",
            )


def found_by_itself(ctx: typer.Context) -> str | None:
    """A message that names the settings from an `ance.toml` that was found without `--config`."""
    path = ctx.meta.get(_FOUND)
    taken = [
        key
        for key, option in (_options_of(ctx.command) if path else {}).items()
        if _source(ctx, option.name) == "DEFAULT_MAP"
    ]
    return f"settings from {path}: {', '.join(taken)}" if taken else None


def is_set(ctx: typer.Context, name: str) -> bool:
    """Whether the caller set a parameter, on the command line or in a file."""
    return _source(ctx, name) in ("COMMANDLINE", "DEFAULT_MAP")


def _source(ctx: typer.Context, name: str) -> str:
    return getattr(ctx.get_parameter_source(name), "name", "")


def _options_of(command: Any) -> dict[str, Any]:
    """Key -> option, by the options' long names; empty for a command without `--config`."""
    options = {
        next(name for name in each.opts if name.startswith("--"))[2:]: each
        for each in command.params
        if each.param_type_name == "option"
    }
    return options if options.pop("config", None) else {}


def _check_names(
    path: Path,
    tables: Mapping[str, Mapping[str, Setting]],
    options: Mapping[str, Mapping[str, Any]],
) -> None:
    known = {SHARED: {key for each in options.values() for key in each}, **options}
    for table, settings in tables.items():
        if table not in known:
            raise UsageProblem(
                f"{path}: [{table}] names no command that takes settings",
                hint=_nearest(table, known, f"the tables are {', '.join(known)}"),
            )
        for key, setting in settings.items():
            if key not in known[table]:
                who = "no command takes" if table == SHARED else f"ance {table} does not take"
                listed = "COMMAND" if table == SHARED else table
                raise UsageProblem(
                    f"{setting.where}: {who} {key!r}",
                    hint=_nearest(key, known[table], f"ance {listed} --help lists the names"),
                )


def _nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def _as_typed(
    ctx: typer.Context, option: Any, key: str, setting: Setting, folder: Path
) -> bool | str | list[str]:
    """A setting in the form of the command line, checked by the command line's parser."""

    def refuse(problem: str) -> UsageProblem:
        return UsageProblem(f"{setting.where}: {key} = {setting.value!r}: {problem}")

    if option.is_flag:
        if not isinstance(setting.value, bool):
            raise refuse("expected true or false")
        return setting.value
    several = option.multiple and isinstance(setting.value, list)
    words = []
    for value in setting.value if several else [setting.value]:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise refuse("expected one string or number")
        word = str(value)
        if option.metavar in _NAMES_A_PLACE and word != "-":
            word = str(folder / word)
        words.append(word)
    typed = words if option.multiple else words[0]
    try:
        option.process_value(ctx, typed)
    except typer.BadParameter as problem:
        raise refuse(problem.message) from problem
    return typed
