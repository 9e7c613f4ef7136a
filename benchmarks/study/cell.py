"""A cell: plain `ance` commands with placeholders, what they need, and what is kept of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ance_cli.errors import UsageProblem
from ance_cli.formats.hashing import hash_json

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Placeholders:
    """Values of the placeholders of a command on this machine."""

    data: Path
    weights: Path
    work: Path
    threads: int = 0

    def fill(self, text: str) -> str:
        """`{data}/medquad` -> the path here; an unknown placeholder is a `UsageProblem`."""
        values = {"data": self.data, "weights": self.weights, "work": self.work,
                  "threads": self.threads}  # fmt: skip

        def value(found: re.Match[str]) -> str:
            if found[1] not in values:
                raise UsageProblem(f"{text}: {found[0]} is no placeholder; {', '.join(values)} are")
            return str(values[found[1]])

        return _PLACEHOLDER.sub(value, text)

    def path(self, text: str) -> Path:
        return Path(self.fill(text))

    def words(self, command: str) -> list[str]:
        """The arguments of one command line, without `ance`; a path may hold spaces."""
        return [self.fill(word) for word in shlex.split(command)[1:]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the commands of a cell left: the summary that each printed, and the places."""

    commands: Sequence[Sequence[str]]
    summaries: Sequence[Mapping[str, Any]]
    places: Placeholders


Collect = Callable[[Outcome], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One independent piece of the study, at most half an hour on two cores.

    `commands` begin with `ance`; each of them can be repeated, and then continues or says that its
    output is up to date. `makes` are the artifacts that other cells read; `needs` the cells that
    make what this one reads. `collect` gives fields of the result besides the measures.
    """

    name: str
    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    seed: int | None = None
    minutes: float
    cores: int = 1
    collect: tuple[Collect, ...] = field(default=(), compare=False)
    beneath: tuple[str, ...] = ()
    """The recipes of what it needs; `in_order` puts them here."""

    @property
    def recipe(self) -> str:
        """A hash of the commands with their placeholders, and of those that made what they read:
        the same on every machine."""
        return hash_json([*self.commands, *self.beneath])

    def is_there(self, places: Placeholders) -> bool:
        """Whether everything that the cell makes for others is in the work folder."""
        return all(places.path(name).exists() for name in self.makes)


def in_order(cells: Iterable[Cell]) -> dict[str, Cell]:
    """Cells by name, each after those that it needs and else as they were given, and each with
    their recipes beneath its own.

    Raises `ValueError` where a name is there twice, a need is no cell, or needs go round.
    """
    given = list(cells)
    by_name = {cell.name: cell for cell in given}
    if len(by_name) < len(given):
        raise ValueError("two cells have one name")
    ordered: dict[str, Cell] = {}

    def place(cell: Cell, above: tuple[str, ...]) -> None:
        if cell.name in above:
            raise ValueError(f"needs go round: {' -> '.join([*above, cell.name])}")
        for need in cell.needs:
            if need not in by_name:
                raise ValueError(f"{cell.name} needs {need}, which is no cell")
            if need not in ordered:
                place(by_name[need], (*above, cell.name))
        beneath = tuple(ordered[need].recipe for need in cell.needs)
        ordered.setdefault(cell.name, replace(cell, beneath=beneath))

    for cell in given:
        place(cell, ())
    return ordered
