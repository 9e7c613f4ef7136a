"""How a command takes flags.

It names them (`@command(app, "mine", "data ckpt depth ...")`), what they are stands in `flags.py`,
and their defaults come from `config/`. So a flag means the same everywhere.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer

from ance_cli.cli.config_file import found_by_itself, is_set
from ance_cli.cli.flags import FLAGS, Flag
from ance_cli.config import (
    Bm25Config,
    DiagnoseConfig,
    EncodeConfig,
    FollowConfig,
    FuseConfig,
    IndexConfig,
    LoopConfig,
    MineConfig,
    RefreshConfig,
    RerankConfig,
    SearchConfig,
    SegmentConfig,
    TrainConfig,
)
from ance_cli.interop import AUTO

T = TypeVar("T")

_CONFIGS = {
    "bm25": Bm25Config, "encode": EncodeConfig, "index": IndexConfig, "mine": MineConfig,
    "search": SearchConfig, "train": TrainConfig, "segment": SegmentConfig,
    "refresh": RefreshConfig, "loop": LoopConfig, "follow": FollowConfig,
    "rerank": RerankConfig, "fuse": FuseConfig, "diagnose": DiagnoseConfig,
}  # fmt: skip


_DEFAULTS = {
    "gpus": "all", "threads": 0, "dtype": "auto", "cpu_workers": 1, "nnodes": 1, "node_rank": 0,
    "interval": 1.0, "import_format": AUTO, "cases": 0, "trials": 200,
}  # fmt: skip
"""Of flags that no config has."""


@dataclass(frozen=True)
class Registered:
    """What a command takes, for the generated reference."""

    help: str
    arguments: list[tuple[str, str, bool]]
    """(name, help, required)"""
    flags: list[tuple[str, Flag, Any]]
    """(names, flag, default), the default `...` where the flag is required"""


COMMANDS: dict[str, Registered] = {}
"""Every command, in the order of registration."""


def default_of(name: str, configs: str) -> Any:
    """The default of a flag: that of the first named config that has a field of its name."""
    for key in configs.split():
        for field in fields(_CONFIGS[key]):
            if field.name == name and field.default is not MISSING:
                return field.default
    return _DEFAULTS.get(name)


class Flags(Mapping[str, Any]):
    """The flags of one call: values by attribute, and which of them the caller typed, on the
    command line or in a settings file."""

    def __init__(self, values: dict[str, Any], typed: set[str]) -> None:
        self._values = {
            name: value.value if isinstance(value, StrEnum) else value
            for name, value in values.items()
        }
        self.typed = {name: self._values[name] for name in values if name in typed}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def config(self, kind: type[T]) -> T:
        """A config dataclass filled with the flags of its fields' names."""
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: self._values[name] for name in names if name in self._values})


def command(
    app: typer.Typer,
    name: str,
    flags: str,
    configs: str = "",
    required: str = "",
    arguments: Mapping[str, tuple[Any, Any, str]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    panel: str | None = None,
) -> Callable[[Callable[[Flags], None]], Callable[[Flags], None]]:
    """Register a function of `Flags` as the command `name`.

    `flags` names its flags, `configs` the configs that hold their defaults (the first that has a
    field wins), `defaults` overrides them, `required` names those without which it cannot run, and
    `arguments` holds its positional arguments: name -> (type, default, help).
    """

    def register(function: Callable[[Flags], None]) -> Callable[[Flags], None]:
        record = Registered(inspect.cleandoc(function.__doc__ or ""), [], [])
        COMMANDS[name] = record
        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        ]
        for argument, (kind, default, text) in (arguments or {}).items():
            info = typer.Argument(help=text, show_default=False, metavar=argument.upper())
            parameters.append(_parameter(argument, kind, info, default))
            record.arguments.append((argument, text, default is ...))
        for flag_name in flags.split():
            flag = FLAGS[flag_name]
            default = (defaults or {}).get(flag_name, default_of(flag_name, configs))
            if flag.type is bool:
                default = bool(default)
            elif flag_name in required.split():
                default = ...
            names = flag.names or (f"--{flag_name.replace('_', '-')}",)
            info = typer.Option(
                *names, help=flag.help, rich_help_panel=flag.panel, metavar=flag.metavar,
                show_default=default not in (None, ..., False),
                callback=flag.callback, is_eager=flag.callback is not None,
            )  # fmt: skip
            record.flags.append((", ".join(f"`{part}`" for part in names), flag, default))
            kind = flag.type if default is not None else flag.type | None
            parameters.append(_parameter(flag_name, kind, info, default))

        def call(ctx: typer.Context, **values: Any) -> None:
            typed = {key for key in values if is_set(ctx, key)}
            if not values.get("quiet") and (found := found_by_itself(ctx)):
                print(found, file=sys.stderr)
            try:
                function(Flags(values, typed))
            except BrokenPipeError:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None

        call.__doc__ = function.__doc__
        call.__name__ = function.__name__
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, rich_help_panel=panel)(call)
        return function

    return register


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, info],
        default=inspect.Parameter.empty if default is ... else default,
    )
