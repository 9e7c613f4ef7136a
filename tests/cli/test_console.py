"""Tables as wide, and as narrow, as the terminal."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from ance_cli.cli import console
from ance_cli.cli.console import (
    ConsoleReporter,
    PlainConsole,
    show_error,
    show_facts,
    show_rows,
)
from ance_cli.errors import AnceError

ROWS = [{"source": "ann", "negatives": 12_345, "mean": 0.5}, {"source": "random", "negatives": 2}]


def shown(width, is_terminal):
    file = io.StringIO()
    show_rows(ROWS, Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
    return [line.split() for line in file.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(("width", "is_terminal"), [(80, True), (20, False)])
def test_one_line_a_row(width, is_terminal):
    assert shown(width, is_terminal) == [
        ["source", "negatives", "mean"], ["ann", "12,345", "0.5"], ["random", "2"],
    ]  # fmt: skip


def test_one_below_the_other_where_it_is_too_narrow():
    assert shown(24, True) == [
        ["source", "ann"], ["negatives", "12,345"], ["mean", "0.5"],
        ["source", "random"], ["negatives", "2"], ["mean"],
    ]  # fmt: skip


def test_small_numbers_are_not_shown_as_0():
    assert console._shown(2e-05) == "2e-05" and console._shown(0.0) == "0"


@pytest.mark.parametrize(
    ("elapsed", "pace"),
    [(0.5, "2.0 step/s, 8 min left"), (4.0, "4.0 s/step, 65 min left"),
     (70.0, "70 s/step, 19 h 3 min left"), (3600.0, "3,600 s/step, 40 d 20 h left")],
)  # fmt: skip
def test_the_pace_is_known_after_one_step(monkeypatch, elapsed, pace):
    """As text in a file, and next to a bar: rich alone forgets a step that took half a minute."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    for is_terminal in (False, True):
        file = io.StringIO()
        shown = PlainConsole(file=file, width=200, force_terminal=is_terminal, color_system=None)
        monkeypatch.setattr(console, "stderr", shown)
        monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
        with ConsoleReporter().task("training", 1000, "step", done=19) as bar:
            now[0] += elapsed
            bar.advance()
        assert "20" in file.getvalue() and pace in file.getvalue()


FOREIGN = "a[/b] [bs=32] :smile: \x1b]0;title\x1b[2J\x9b31m c"
SHOWN = "a[/b] [bs=32] :smile: \ufffd]0;title\ufffd[2J\ufffd31m c"


def test_foreign_text_reaches_a_terminal_as_it_is_but_for_control_characters():
    """Names and texts from outside: no markup, no emoji, no escape sequence."""
    file = io.StringIO()
    plain = PlainConsole(file=file, force_terminal=True, width=200, color_system=None)
    plain.print(FOREIGN)
    plain.print(Text(FOREIGN))
    show_rows([{"run": FOREIGN, "mean": 0.5}], plain)
    show_facts({FOREIGN: FOREIGN}, plain)
    printed = file.getvalue()
    assert printed.count(SHOWN) == 5
    assert not set(printed) & {"\x1b", "\x07", "\x9b"}


def test_errors_warnings_and_bars_show_foreign_text(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(console, "stderr", PlainConsole(file=file, width=200))
    reporter = ConsoleReporter()
    reporter.say(FOREIGN)
    reporter.warn(FOREIGN)
    show_error(AnceError(FOREIGN, hint=FOREIGN))
    assert file.getvalue().count(SHOWN) == 4 and "\x1b" not in file.getvalue()
