"""How a setting is declared: one annotated field of a frozen dataclass.

    depth: Annotated[int, Setting("Documents ranked per query.", METHOD, at_least=1)] = 200

The command line, `ance.toml`, the generated reference, the range checks and the manifest's
`shaped_by` are derived from such fields. An annotation that several configs share has a name
(`Depth`), so that the flag has one help text and each config its own default.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ance_cli.errors import UsageProblem

DATA, METHOD, TRAINING, RUNTIME = "Data", "Method", "Training", "Runtime"
"""The panels that --help groups flags into."""

T = TypeVar("T")


_LARGEST: dict[type, float] = {int: 2**31 - 1, float: 3.4e38}
"""The greatest numbers that every library takes: 32-bit integers and floats."""


_SURROGATE = re.compile("[\ud800-\udfff]")
"""What Python makes of a byte of an argument that is not UTF-8."""


def _shown(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


@dataclass(frozen=True)
class Setting:
    """What is known of one setting besides its name, type and default."""

    help: str
    panel: str
    flags: tuple[str, ...] = ()
    """Flags, if they are not --field-name."""
    metavar: str | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    shapes: bool = True
    """Whether the content of the artifact depends on the setting; others only say how it is made,
    or are recorded among the inputs by their content."""
    positional: bool = False
    is_flag: bool = True
    is_output: bool = False
    """A path that is written: an `ance.toml` that was not named sets it only inside its folder."""
    only_asked: bool = False
    """An `ance.toml` that was not named may not set it: that file may be a stranger's."""

    def refusal(self, value: float) -> str | None:
        """What is wrong with a number that is out of range; None if it is in range.

        Without a limit of its own, a number is at most `_LARGEST` and at least minus that.
        """
        low, high = self.at_least, self.at_most
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if low is not None and high is not None and not low <= value <= high:
            return f"must be between {_shown(low)} and {_shown(high)}"
        if low is not None and value < low:
            return "must not be negative" if low == 0 else f"must be at least {_shown(low)}"
        if self.above is not None and value <= self.above:
            return f"must be greater than {_shown(self.above)}"
        if self.below is not None and value >= self.below:
            return f"must be less than {_shown(self.below)}"
        largest = _LARGEST[type(value)] if high is None else high
        if value > largest:
            return f"must be at most {_shown(largest)}"
        if value < -_LARGEST[type(value)]:
            return f"must be at least {_shown(-_LARGEST[type(value)])}"
        return None


@dataclass(frozen=True)
class Declared:
    """A setting of a config: its field's name, type and default (`MISSING` if it is required)."""

    name: str
    type: Any
    """Without None: `int` for a field of `int | None`."""
    default: Any
    setting: Setting

    @property
    def flags(self) -> tuple[str, ...]:
        """How the command line spells it; none for a positional argument."""
        return () if self.setting.positional else self.setting.flags or (flag_of(self.name),)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a closed set."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def check(self, value: Any) -> None:
        """Raise a `UsageProblem` if `value` is out of range or outside of its closed set."""
        flag = self.flags[0] if self.flags else self.name.upper()
        if self.choices and value is not None and value not in self.choices:
            raise UsageProblem(f"{flag} {value!r} is not one of {', '.join(self.choices)}")
        names_a_path = self.setting.metavar in ("DIR", "FILE", "PATH")
        if isinstance(value, str) and not names_a_path and _SURROGATE.search(value):
            raise UsageProblem(f"{flag} {value[:60]!r} is not UTF-8")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (refusal := self.setting.refusal(value)):
            raise UsageProblem(f"{flag} {refusal}")


def flag_of(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return f"--{key_of(name)}"


def key_of(name: str) -> str:
    """`batch_size` -> `batch-size`, as `ance.toml` spells it."""
    return name.replace("_", "-")


_declared: dict[type, tuple[Declared, ...]] = {}


def declared(config: type) -> tuple[Declared, ...]:
    """The settings of a config dataclass, in the order of its fields."""
    if config not in _declared:
        hints = get_type_hints(config, include_extras=True)
        _declared[config] = tuple(
            setting_of(field.name, hints[field.name], field.default) for field in fields(config)
        )
    return _declared[config]


def setting_of(name: str, hint: Any, default: Any) -> Declared:
    """The setting that an annotation declares."""
    kind, setting = _unwrapped(hint)
    assert setting is not None, f"{name}: {hint} declares no setting"
    return Declared(name, kind, default, setting)


def _unwrapped(hint: Any) -> tuple[Any, Setting | None]:
    """(type without None, setting) of an annotation like `Annotated[int, Setting(...)] | None`."""
    setting = None
    while True:
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            setting = next((each for each in extras if isinstance(each, Setting)), setting)
        elif get_origin(hint) in (Union, types.UnionType):
            hint = next(each for each in get_args(hint) if each is not types.NoneType)
        else:
            return hint, setting


def check(condition: bool, what: str, hint: str | None = None) -> None:
    """Raise a `UsageProblem` that says `what` unless the condition holds."""
    if not condition:
        raise UsageProblem(what, hint=hint)


class Config:
    """Base of every config: refuses values out of their range or outside of their closed set."""

    def __post_init__(self) -> None:
        for each in declared(type(self)):
            each.check(getattr(self, each.name))


def shaped_by(config: Config, kind: type[Config] | None = None) -> dict[str, Any]:
    """The settings on which the content of an artifact depends, for its manifest.

    If `config` is of a larger class than the artifact needs, `kind` names the class whose settings
    count.
    """
    return {
        each.name: getattr(config, each.name)
        for each in declared(kind or type(config))
        if each.setting.shapes
    }


@dataclass(frozen=True)
class Given(Generic[T]):
    """Settings of the config `T` as the caller gave them.

    `values` holds only those that were set on the command line or in a settings file, before any
    default or preset; `all` holds every one, with its default.
    """

    kind: type[T]
    values: Mapping[str, Any]
    all: Mapping[str, Any]

    def config(self) -> T:
        """The config itself, with the defaults of `T`."""
        return self.kind(**self.all)


def has_default(each: Declared) -> bool:
    """Whether the setting may be left out."""
    return each.default is not MISSING
