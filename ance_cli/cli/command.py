"""Turns a function into a command.

    @command(app, "index", "Stages", takes=(*COMMON, "force", "threads"))
    def index(call: Call, *, embeddings: IndexedFolder, config: IndexConfig) -> Summary:

Every parameter after `call` is a setting or a config dataclass, whose fields are settings. They
become flags and arguments with the names, types, ranges, help and defaults that `config/` declares.
`Given[T]` receives the settings of the config `T` that the caller set. A function that shows its
result itself takes the `CallSettings` as well (--json, --quiet) and returns None.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ance_cli.call import Call
from ance_cli.cli.config_file import config_reader, found_by_itself, is_set
from ance_cli.cli.runner import run_command, with_dataset_folders
from ance_cli.config.calling import CallSettings
from ance_cli.config.setting import Config, Declared, Given, declared, has_default, setting_of
from ance_cli.errors import UsageProblem
from ance_cli.formats.hashing import cache_dir
from ance_cli.formats.summary import Summary

CallFlag = Literal[
    "config",
    "cache_dir",
    "dry_run",
    "quiet",
    "json",
    "force",
    "threads",
    "trust_remote_code",
    "skip_bad",
    "longest_line",
]
LOADS: tuple[CallFlag, ...] = ("trust_remote_code", "threads")
"""Flags of every command that loads a checkpoint."""
READS: tuple[CallFlag, ...] = ("skip_bad", "longest_line")
"""Flags of every command that reads text files from outside."""
COMMON: tuple[CallFlag, ...] = ("config", "cache_dir", "dry_run", "quiet", "json")

Function = Callable[..., Summary | None]


@dataclass(frozen=True)
class Command:
    """A registered command, for the generated reference and for `ance init`."""

    name: str
    help: str
    settings: list[Declared]
    """A setting that several of its configs declare is listed once."""


COMMANDS: dict[str, Command] = {}
"""Every command, in the order of registration."""


def command(
    app: typer.Typer, name: str, panel: str, takes: tuple[CallFlag, ...]
) -> Callable[[Function], Function]:
    """Register a function as the command `name`; `takes` names its flags of the call."""

    def register(function: Function) -> Function:
        parts = list(_parts(function))
        of_the_call = {each.name: each for each in declared(CallSettings)}
        settings: dict[str, Declared] = {}
        for each in itertools.chain.from_iterable(part.settings for part in parts):
            settings.setdefault(each.name, each)
        settings |= {flag: of_the_call[flag] for flag in takes}
        COMMANDS[name] = Command(
            name, inspect.cleandoc(function.__doc__ or ""), [*settings.values()]
        )

        def run(ctx: typer.Context, **values: Any) -> None:
            _check_encoding(values)
            if not values.get("quiet") and (found := found_by_itself(ctx)):
                print(found, file=sys.stderr)
            typed = {key for key in values if is_set(ctx, key)}

            def filled(values: dict[str, Any]) -> dict[str, Any]:
                return {part.name: part.filled(values, typed) for part in parts}

            def work(call: Call) -> Summary | None:
                return function(call, **filled(with_dataset_folders(values, call)))

            filled(values)  # settings are checked before anything is read
            asked = CallSettings(**{key: values[key] for key in takes})
            try:
                run_command(asked, values.get("output"), work)
            except BrokenPipeError:  # `| head` has read enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None

        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(_parameter(each, settings) for each in settings.values()),
        ]
        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, rich_help_panel=panel)(run)
        return function

    return register


def _check_encoding(values: dict[str, Any]) -> None:
    """Raise `UsageProblem` for a path or text that is not UTF-8: JSON files could not name it."""
    listed = [each for value in values.values() if isinstance(value, list) for each in value]
    texts = [str(each) for each in (*values.values(), *listed) if isinstance(each, str | Path)]
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise UsageProblem(
            "the working folder was removed", hint="change to a folder that exists: cd"
        ) from None
    for text in (*texts, here, str(cache_dir())):
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode("utf-8", "backslashreplace")
            raise UsageProblem(
                f"{shown}: the name is not valid UTF-8", hint="rename the file or folder"
            ) from None


@dataclass(frozen=True)
class _Part:
    """One parameter of a command's function, and the settings that fill it."""

    name: str
    settings: tuple[Declared, ...]
    filled: Callable[[dict[str, Any], set[str]], Any]
    """Takes the values of all flags and the names of those that the caller set."""


def _parts(function: Function) -> Iterator[_Part]:
    """The parameters after `call`."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "call":
            yield _part(parameter.name, hints[parameter.name], parameter.default)


def _part(name: str, hint: Any, default: Any) -> _Part:
    """The part for a config, a `Given` config, the settings of the call, or a single setting."""
    is_given = get_origin(hint) is Given
    kind = get_args(hint)[0] if is_given else hint
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        one = setting_of(name, hint, MISSING if default is inspect.Parameter.empty else default)

        def checked(values: dict[str, Any], _: set[str]) -> Any:
            one.check(values[name])
            return values[name]

        return _Part(name, (one,), checked)
    if kind is CallSettings:
        return _Part(name, (), lambda values, _: CallSettings(**_own(CallSettings, values)))
    settings = tuple(each for each in declared(kind) if each.setting.is_flag)

    def filled(values: dict[str, Any], typed: set[str]) -> Any:
        own = _own(kind, values)
        if not is_given:
            return kind(**own)
        return Given(kind, {key: own[key] for key in own if key in typed}, own)

    return _Part(name, settings, filled)


def _own(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    return {each.name: values[each.name] for each in declared(kind) if each.name in values}


def _parameter(each: Declared, settings: dict[str, Declared]) -> inspect.Parameter:
    """The parameter from which typer builds the flag of one of a command's settings."""
    setting, default = each.setting, each.default
    kind = each.type if default is not None else each.type | None
    info: Any
    if setting.positional:
        info = typer.Argument(help=setting.help, show_default=False, metavar=each.name.upper())
    else:
        is_config = each.name == "config"
        info = typer.Option(
            *each.flags,
            help=setting.help,
            rich_help_panel=setting.panel,
            metavar=setting.metavar,
            show_default=has_default(each) and default is not None and default is not False,
            callback=config_reader(settings) if is_config else None,
            is_eager=is_config,
        )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, info],
        default=default if has_default(each) else inspect.Parameter.empty,
    )
