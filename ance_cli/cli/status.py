"""`ance status`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ance_cli.call import Call
from ance_cli.cli.command import command
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import RunPath
from ance_cli.config.evaluation import Interval, Watch
from ance_cli.errors import Stopped
from ance_cli.progress import duration

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from ance_cli.loop.status_schema import Refresh, RunStatus


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "status", "Loop", takes=("json",))
    def status(
        call: Call,
        asked: CallSettings,
        *,
        run_folder: RunPath,
        watch: Watch = False,
        interval: Interval = 1.0,
    ) -> None:
        """Show the state of a run: training, negatives, processes, refreshes, errors, disk.

        It only reads, and works while the run is active, afterwards, and on a copy of a run. With
        --watch the view is refreshed every --interval seconds; if stdout is not a terminal, each
        refresh prints one block, or with --json one line.

        Example: `ance status runs/ance --watch`
        """
        try:
            _watch(run_folder, interval, asked.json) if watch else _show_once(
                run_folder, asked.json
            )
        except Stopped as stop:  # Ctrl-C is the usual end of --watch
            if stop.signum != signal.SIGINT or not watch:
                raise


def _show_once(run_folder: Path, as_json: bool) -> None:
    from ance_cli.cli.console import stdout
    from ance_cli.loop.status import status

    found = status(run_folder)
    if as_json:
        _print_json(found, indented=sys.stdout.isatty())
    else:
        console = stdout()
        console.print(view(found, console.width))


def _watch(run_folder: Path, interval: float, as_json: bool) -> None:
    from rich.live import Live

    from ance_cli.cli.console import stdout

    console = stdout()
    if as_json or not console.is_terminal:
        for found in _views(run_folder, interval):
            if as_json:
                _print_json(found, indented=False)
            else:
                console.print(f"--- {found.time}")
                console.print(view(found, console.width))
        return
    with Live(console=console, auto_refresh=False) as live:
        for found in _views(run_folder, interval):
            live.update(_fitting(found, console), refresh=True)


def _views(run_folder: Path, interval: float) -> Iterator[RunStatus]:
    """The state of the run, now and after each interval, until the run has finished."""
    from ance_cli.loop.status import status

    while True:
        found = status(run_folder)
        yield found
        if found.state == "finished":
            return
        time.sleep(interval)


def _print_json(found: RunStatus, indented: bool) -> None:
    import orjson

    text = orjson.dumps(found, option=orjson.OPT_INDENT_2 if indented else 0)
    sys.stdout.buffer.write(text + b"\n")
    sys.stdout.buffer.flush()


# ---------------------------------------------------------------- the view


def _fitting(found: RunStatus, console: Console) -> Group:
    """The view with as many of the last refreshes as fit into the terminal."""
    last = len(found.refreshes)
    while True:
        shown = view(found, console.width, last)
        if last <= 1 or len(console.render_lines(shown)) < console.height:
            return shown
        last -= 1


def view(found: RunStatus, width: int, last_refreshes: int | None = None) -> Group:
    """The whole view for a console of `width` columns: lines that wrap, and the table of refreshes,
    split into several tables if it is wider."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, lines in _sections(found).items():
        for position, line in enumerate(lines):
            grid.add_row("" if position else label, Text.from_markup(line))
    shown = found.refreshes[-last_refreshes:] if last_refreshes else found.refreshes
    rows = [_row(refresh) for refresh in shown]
    left_out = len(found.refreshes) - len(rows)
    notes = [Text(f"... {left_out} earlier refreshes", style="dim")] if left_out else []
    return Group(grid, *notes, *_tables(rows, width))


def _sections(found: RunStatus) -> dict[str, list[str]]:
    """The lines of each part, as rich's markup."""
    from rich.filesize import decimal
    from rich.markup import escape

    from ance_cli.loop.status_schema import explained, shown_event, shown_role

    colour = {"running": "green", "finished": "green", "stopped": "yellow"}.get(found.state, "bold")
    mode = f", {found.mode}" if found.mode else ""
    reason = f": {found.reason}" if found.reason else ""
    sections = {
        "run": [f"{escape(found.run)}  [{colour}]{found.state}[/{colour}]{mode}{escape(reason)}"],
        "training": _training_lines(found),
        "negatives": [_negatives_line(found)],
        "refresh": [_refresh_line(found)],
        "processes": [
            f"[{'green' if worker.alive else 'red'}]{shown_role(worker.role)}[/] "
            f"{'' if worker.alive else 'dead: '}process {worker.pid} on {escape(worker.host)}, "
            f"started {_clock(worker.started)}, heartbeat {duration(worker.heartbeat_age)} ago"
            for worker in found.workers
        ]
        or ["none"],
    }
    sections |= {name: [escape(sentence)] for name, sentence in explained(found).items()}
    if drift := found.drift:
        outcome = "refresh" if drift.get("refresh") else "no refresh"
        sections["drift"] = [
            f"overlap {drift.get('overlap')} between step {drift.get('checkpoint_step')} and "
            f"generation {drift.get('generation')}: {outcome} ({_clock(drift.get('time'))})"
        ]
    parts = [f"{name} {decimal(size)}" for name, size in found.disk.items()
             if size and name not in ("all", "free")]  # fmt: skip
    sections["disk"] = [
        f"{decimal(found.disk['all'])} ({', '.join(parts)}); {decimal(found.disk['free'])} free"
    ]
    if found.problems:
        sections["errors"] = [
            f"[red]{_clock(problem.time)}[/red] {escape(shown_role(problem.who))}: "
            + escape(shown_event(problem.what))
            + escape("".join(f", {name} {value}" for name, value in problem.facts.items()))
            for problem in found.problems
        ]
    return sections


def _training_lines(found: RunStatus) -> list[str]:
    training = found.training
    line = f"step {training.step:,}"
    if training.last_step is not None:
        line += f" of {training.last_step:,}"
        if training.last_step:
            line += f" ({training.step / training.last_step:.1%})"
    if training.waiting:
        line += ", [yellow]waiting for negatives[/yellow]"
    if training.seconds_left is not None:
        line += f", {duration(training.seconds_left)} left"
    lines = [line]
    figures = []
    if training.loss is not None:
        figures.append(f"loss {training.loss:.4f}")
    if training.lr is not None:
        figures.append(f"lr {training.lr:.2e}")
    if training.steps_per_s is not None:
        figures.append(f"{training.steps_per_s:,.2f} steps/s")
    if training.tokens_per_s is not None:
        figures.append(f"{training.tokens_per_s:,.0f} tokens/s")
    if training.mfu is not None:
        figures.append(f"MFU {training.mfu:.2%}")
    if training.logged_age is not None:
        figures.append(f"logged {duration(training.logged_age)} ago")
    return [*lines, ", ".join(figures)] if figures else lines


def _negatives_line(found: RunStatus) -> str:
    negatives = found.negatives
    if negatives.generation is not None:
        line = f"generation {negatives.generation}"
    else:
        line = "from a file" if negatives.checkpoint_step is not None else "none in use"
    if negatives.checkpoint_step is not None:
        line += f", mined at step {negatives.checkpoint_step:,}, {negatives.age:,} steps old"
    if negatives.published is None:
        return f"{line}; none published"
    if negatives.published == negatives.generation:
        return f"{line} (published)"
    return (
        f"{line}; published: generation {negatives.published}, mined at step "
        f"{negatives.published_step:,}"
    )


def _refresh_line(found: RunStatus) -> str:
    at = found.refreshing
    if at.phase is None:
        return "none"
    if at.phase == "waiting":
        return "waiting for a checkpoint"
    line = at.phase if at.running else f"[yellow]interrupted[/yellow]: {at.phase}"
    if at.generation is not None:
        line += f" of generation {at.generation}"
    if at.checkpoint_step is not None:
        line += f" from step {at.checkpoint_step:,}"
    if at.blocks and at.blocks_done is not None:
        line += f": {at.blocks_done:,} of {at.blocks:,} blocks ({at.blocks_done / at.blocks:.0%})"
    return f"{line}, started {_clock(at.started)}" if at.started else line


def _row(refresh: Refresh) -> dict[str, str]:
    """One refresh; the most important columns come first."""
    return {
        "gen": f"{refresh.generation}{'*' if refresh.is_best else ''}",
        "step": f"{refresh.checkpoint_step:,}",
        "age": _figure(refresh.age),
        **{name: f"{value:.4f}" for name, value in refresh.dev.items()},
        **{f"guard {name}": f"{value:.4f}" for name, value in refresh.guard.items()},
        **({} if refresh.guard_fall is None else {"guard fall": f"{refresh.guard_fall:.4f}"}),
        "overlap": _figure(refresh.probe_overlap),
        "kept": _figure(refresh.overlap_with_earlier),
        "used": _figure(refresh.consumed),
        "filtered": _figure(refresh.positives_filtered),
        "short": _figure(refresh.pairs_short_of_negatives),
        **{f"{name} s": f"{value:,.1f}" for name, value in refresh.seconds.items()},
    }


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _tables(rows: list[dict[str, str]], width: int) -> list[Table]:
    """The rows as tables that fit into `width` columns; each begins with the first column."""
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        return []
    wide = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) + 2 for name in names}
    groups: list[list[str]] = []
    for name in names[1:]:
        if not groups or sum(wide[other] for other in [*groups[-1], name]) > width:
            groups.append([names[0]])
        groups[-1].append(name)
    tables = []
    for group in groups:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in group:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(row.get(name, "") for name in group))
        tables.append(table)
    return tables


def _clock(moment: Any) -> str:
    """A time from a ledger, in the local time zone."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(moment)).astimezone().strftime("%d %b %H:%M:%S")
    except ValueError:
        return str(moment)
