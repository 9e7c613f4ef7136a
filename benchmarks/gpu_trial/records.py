"""The numbers of a trial on disk: one JSON line each, appended when the number is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

Value = float | int | bool | str
ENDED = "ended"
"""The number that says how a part ended."""


@dataclass(frozen=True)
class Record:
    """One line. `value` None: not measured, for the reason `not_run`."""

    part: str
    name: str
    value: Value | None
    unit: str
    not_run: str | None
    more: dict[str, Any]


class Records:
    """The file of one trial; several processes may append to it, one after the other."""

    def __init__(self, path: Path, run: str) -> None:
        """`run` names the trial: lines of an earlier one in the same file are not read."""
        self.path, self.run = path, run

    def add(
        self,
        part: str,
        name: str,
        value: Value | None,
        unit: str = "",
        not_run: str | None = None,
        **more: Any,
    ) -> None:
        """Append a number, on a line of its own also if the last line was cut by a kill.

        JSON has no infinity and no NaN: they become words, which reach no mark.
        """
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        line = {"part": part, "name": name, "value": value, "unit": unit, "run": self.run, **more}
        if not_run is not None:
            line["not_run"] = not_run
        text = orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        with open(self.path, "a+b") as handle:
            if handle.tell():
                handle.seek(-1, 2)
                if handle.read(1) != b"\n":
                    text = b"\n" + text
            handle.write(text)

    def read(self) -> dict[tuple[str, str], Record]:
        """(part, name) -> the last whole line with that name."""
        return {(record.part, record.name): record for record in self._lines()}

    def _lines(self) -> Iterator[Record]:
        if not self.path.exists():
            return
        for text in self.path.read_bytes().splitlines():
            try:
                line = orjson.loads(text)
                if line.pop("run") != self.run:
                    continue
                yield Record(
                    line.pop("part"), line.pop("name"), line.pop("value"), line.pop("unit"),
                    line.pop("not_run", None), line,
                )  # fmt: skip
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a process was killed while it wrote this line
