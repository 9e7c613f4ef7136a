"""Shows progress, summaries and errors on stderr, and one JSON object on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ance_cli.call import SkippedLines
from ance_cli.errors import AnceError
from ance_cli.progress import Bar, Silent, duration

PLAIN_SECONDS = 30.0
_DRAW_SECONDS = 0.1
"""The shortest time between two updates of a bar: drawing takes longer than training on a pair."""
FILE_WIDTH = 160
"""Columns if the output is a file or a pipe, so that tables are not folded."""


_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�")
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def plain(text: str) -> str:
    """A text from outside as it may reach a terminal: control characters, which could begin escape
    sequences, are replaced."""
    return text.translate(_CONTROLS)


class PlainConsole(Console):
    """A console that takes no text for markup or emoji, and lets no control character of a text
    through: names, queries and documents are foreign."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(plain(segment.text), segment.style)


def _console(to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else FILE_WIDTH
    return PlainConsole(stderr=to_stderr, soft_wrap=True, width=width)


def _headed(head: str, style: str, rest: str) -> Text:
    return Text.assemble((head, style), f" {rest}")


stderr = _console(to_stderr=True)


class _Pace:
    """How fast a task advances, and how long the rest of it takes at that pace.

    Both are means since the task began, so that they are known after its first unit, and of units
    that take minutes.
    """

    def __init__(self, total: int, unit: str, done: int) -> None:
        self.done, self._first, self._total, self._unit = done, done, total, unit
        self._started = time.monotonic()

    def __str__(self) -> str:
        count, elapsed = self.done - self._first, time.monotonic() - self._started
        if not count or not elapsed:
            return ""
        left = duration(max(self._total - self.done, 0) * elapsed / count)
        return f"{_rate(count / elapsed, self._unit)}, {left} left"


def _rate(speed: float, unit: str) -> str:
    """Units per second, or the seconds of one if it takes longer than that."""
    if speed >= 1:
        return f"{speed:,.1f} {unit}/s"
    return f"{1 / speed:,.{0 if speed < 0.1 else 1}f} s/{unit}"


class _RichBar:
    def __init__(self, progress: Progress, task: Any, pace: _Pace) -> None:
        self._progress, self._task, self._pace = progress, task, pace
        self._drawn = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self._pace.done += amount
        if time.monotonic() - self._drawn >= _DRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Show the progress up to now."""
        pace = self._pace
        self._progress.update(self._task, completed=pace.done, pace=str(pace))
        self._drawn = time.monotonic()

    def describe(self, text: str) -> None:
        self._progress.update(self._task, words=text)


class _PlainBar:
    """Prints one line every half minute, for a stderr that is a file."""

    def __init__(self, name: str, total: int, pace: _Pace) -> None:
        self._name, self._total, self._pace = name, total, pace
        self._printed = time.monotonic()
        self._text = ""

    def advance(self, amount: int = 1) -> None:
        self._pace.done += amount
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            stderr.print(
                f"{self._name}: {self._pace.done:,} of {self._total:,} ({self._pace}) "
                f"{self._text}".rstrip(),
            )

    def describe(self, text: str) -> None:
        self._text = text


class ConsoleReporter:
    """Shows messages and progress on stderr; with `quiet`, only warnings."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            stderr.print(text)

    def warn(self, text: str) -> None:
        stderr.print(_headed("warning:", "yellow", text))

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        if self.quiet:
            with Silent().task(name, total, unit, done) as silent:
                yield silent
            return
        pace = _Pace(total, unit, done)
        if not stderr.is_terminal:
            yield _PlainBar(name, total, pace)
            return
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            TextColumn("{task.fields[words]}", markup=False),
        ]
        with Progress(*columns, console=stderr) as progress:
            task = progress.add_task(name, total=total, completed=done, pace="", words="")
            drawn = _RichBar(progress, task, pace)
            yield drawn
            drawn.draw()


def show_error(error: AnceError) -> None:
    """Show an error, and its hint on a line of its own."""
    stderr.print(_headed("error:", "bold red", error.what))
    if error.hint:
        stderr.print(_headed("hint:", "bold", error.hint))


def show_skipped(skipped: SkippedLines | None) -> None:
    """Show how many broken lines were skipped, and the first five."""
    if skipped and skipped.count:
        stderr.print(_headed(f"skipped {skipped.count} broken lines;", "yellow", "the first:"))
        for reason in list(skipped.reasons)[:5]:
            stderr.print(f"  {reason}")


def show_summary(summary: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Show a summary as one JSON object on stdout, or as a few lines on stderr."""
    if as_json:
        options = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
        sys.stdout.buffer.write(orjson.dumps(summary, option=options) + b"\n")
        sys.stdout.buffer.flush()
        return
    if quiet:
        return
    name, kind = summary.get("output", ""), summary.get("kind", "")
    if summary.get("dry_run"):
        stderr.print(f"would make {kind} {name}")
    elif summary.get("up_to_date"):
        stderr.print(f"{name}: up to date")
        return
    elif name:
        stderr.print(_headed("made", "green", f"{kind} {name}"))
    hidden = {"output", "kind", "up_to_date", "fingerprint", "dry_run", "generations", "audit"}
    show_facts({k: v for k, v in summary.items() if k not in hidden}, stderr)
    if audit := summary.get("audit"):
        show_audit(audit)
    if rows := summary.get("generations"):
        show_rows(rows)


def show_next(commands: list[str]) -> None:
    """Suggest the next commands on stderr."""
    if commands:
        stderr.print("next:", *commands, sep="\n  ")


def show_facts(facts: dict[str, Any], console: Console | None = None) -> None:
    """Show names and values, one per line; by default on stdout."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for key, value in _flat(facts):
        table.add_row(Text(plain(key), style="dim"), Text(value))
    if table.row_count:
        (console or stdout()).print(table)


def show_audit(audit: dict[str, Any]) -> None:
    """Show the negatives of each source, the removed candidates, the scores, and the rest."""
    removed = audit["removed_from_candidates"]
    rules = list(dict.fromkeys(rule for counts in removed.values() for rule in counts))
    show_rows(
        [
            {
                "source": source,
                "share": f"{share:.0%}",
                "negatives": audit["by_source"].get(source, 0),
                "missing": audit["missing_by_source"].get(source, 0),
                **{f"- {rule}": removed.get(source, {}).get(rule, "") for rule in rules},
            }
            for source, share in audit["shares"].items()
        ]
    )
    spread = {
        name: value for name, value in audit.items() if isinstance(value, dict) and "p50" in value
    }
    if spread:
        show_rows([{"": _words(name), **value} for name, value in spread.items()])
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    shown = {"shares", "by_source", "missing_by_source", "removed_from_candidates", *spread}
    for key, value in _flat({name: audit[name] for name in audit if name not in shown}):
        table.add_row(Text(_words(key), style="dim"), Text(value))
    stderr.print(table)


def _words(key: str) -> str:
    return key.replace("_", " ")


def stdout() -> Console:
    """A console for results: tables and hits."""
    return _console(to_stderr=False)


def show_rows(rows: list[dict[str, Any]], console: Console = stderr) -> None:
    """Show records with the same keys as a table.

    On a terminal that is too narrow, the records are shown one below the other; in a file, the
    table is as wide as necessary.
    """
    table = Table(box=None, padding=(0, 2, 0, 2))
    for key, value in rows[0].items():
        number = isinstance(value, int | float)
        table.add_column(key, justify="right" if number else "left", overflow="fold")
    columns = [_column([row.get(key, "") for row in rows]) for key in rows[0]]
    for texts in zip(*columns, strict=True):
        table.add_row(*texts)
    wanted = Measurement.get(console, console.options.update(max_width=1_000), table).maximum
    if len(rows[0]) < 3 or wanted <= console.width or not console.is_terminal:
        if not console.is_terminal:
            console = PlainConsole(file=console.file, width=wanted, no_color=True)
        console.print(table)
        return
    for row in rows:
        below = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for key in rows[0]:
            below.add_row(key, _shown(row.get(key, "")))
        console.print(below)
        console.print()


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if key.endswith("_bytes"):
            sizes = "  ".join(f"{name} {decimal(size)}" for name, size in value.items())
            yield f"{prefix}{key.removesuffix('_bytes')}", sizes
        elif isinstance(value, dict):
            if value and not any(isinstance(part, dict) for part in value.values()):
                yield f"{prefix}{key}", "  ".join(f"{k} {_shown(v)}" for k, v in value.items())
            else:
                yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(_shown, value))
        elif value is not None:
            yield f"{prefix}{key}", _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        if 0 < abs(value) < 0.001:  # a learning rate, say
            return f"{value:.4g}"
        return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return plain(str(value))


def _column(values: list[Any]) -> list[str]:
    """The texts of a column; its floats get the same number of decimals."""
    texts = [_shown(value) for value in values]
    if not all(
        isinstance(value, float) and "." in text for value, text in zip(values, texts, strict=True)
    ):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    if any("e" in text for text in texts):
        return texts
    return [f"{value:,.{decimals}f}" for value in values]
