"""The terminal's picture: what is drawn is what the command left on the screen."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from rich.text import Text

from benchmarks.picture import draw, printed, without

SESSION = """
import sys
from rich.console import Console
from rich.progress import Progress
console = Console(stderr=True)
print("cwd", __import__("os").listdir())
with Progress(console=console) as progress:
    task = progress.add_task("encoding", total=40)
    for _ in range(40):
        progress.advance(task)
        progress.refresh()
console.print(f"[green]made[/green] width {console.width}")
"""


def test_a_bar_is_kept_in_its_last_state_and_colours_survive() -> None:
    lines = printed([sys.executable, "-c", SESSION], 90)
    texts = [Text.from_ansi(line).plain.rstrip() for line in lines]
    assert texts[0] == "cwd []"
    assert re.fullmatch(r"encoding ━+ 100% 0:00:00", texts[1])
    assert texts[2:] == ["made width 90"]
    assert lines[2].startswith("\x1b[32mmade\x1b[0m")


def test_a_failed_command_gives_no_picture() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        printed([sys.executable, "-c", "print('half'); raise SystemExit(3)"], 80)


def test_each_gap_is_one_ellipsis() -> None:
    lines = [Text(line) for line in ("a", "  x", "  y ", "b", "  z", "c")]
    assert [line.plain for line in without(lines, r"^  \w$")] == ["a", "…", "b", "…", "c"]
    assert without(lines, None) == lines


def test_the_svg_refers_to_nothing_outside() -> None:
    picture = draw("ance demo", [Text("RR@10 0.9 & <more>"), Text("x" * 130)], 100)
    ElementTree.fromstring(picture)
    assert "@font-face" not in picture
    assert not re.search(r"url\((?!#)|href", picture)
    assert "RR@10&#160;0.9&#160;&amp;&#160;&lt;more&gt;" in picture
    assert "x" * 100 in picture and "x" * 101 not in picture  # folded, as a terminal does
