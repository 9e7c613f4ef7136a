"""Draws a terminal: runs a command in an empty folder and writes what it printed as an SVG.

    python benchmarks/picture.py docs/figures/demo.svg --omit '^made|^ {2,}' -- ance demo --quick

The command runs in a pseudo-terminal, so the picture has the colours and the width that a person
sees, and the last state of each progress bar. Lines that match --omit are left out, and each gap is
shown as one line with an ellipsis. The SVG needs no other file: its text is set in the reader's own
monospaced font. If the command fails, no picture is written.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
REDRAWN = re.compile(r"^.*(?:\x1b\[2K|\r)", re.DOTALL)
"""What a progress bar printed before it was drawn for the last time on this line."""
CURSOR = re.compile(r"\x1b\[\?25[hl]|\x1b\[\d*[A-GJ]")


def printed(command: list[str], width: int) -> list[str]:
    """The lines that a command leaves on a terminal of `width` columns, with their colours.

    Raises CalledProcessError if the command fails.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width)}
    environment.pop("NO_COLOR", None)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        output = b""
        while chunk := _read(ours):
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
            output += chunk
        os.close(ours)
        if code := process.wait():
            raise subprocess.CalledProcessError(code, command)
    lines = output.decode("utf-8", "replace").split("\n")
    lines = [CURSOR.sub("", REDRAWN.sub("", line.rstrip("\r"))) for line in lines]
    return lines[:-1] if lines[-1] == "" else lines


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the last writer has closed a pseudo-terminal
        return b""


def without(lines: list[Text], omit: str | None) -> list[Text]:
    """The lines that do not match `omit`; each gap is one line with an ellipsis."""
    kept: list[Text] = []
    for line in lines:
        if not omit or not re.search(omit, line.plain.rstrip()):
            kept.append(line)
        elif not kept or kept[-1].plain != "…":
            kept.append(Text("…", style="dim"))
    return kept


def draw(prompt: str, lines: list[Text], width: int) -> str:
    """An SVG without any reference to another file or host."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True)
        console.print(Text.assemble(("$ ", "bold green"), (prompt, "bold")))
        for line in lines:
            console.print(line, soft_wrap=False, overflow="fold")
        template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        template = template.replace("Fira Code, monospace", FONTS)
        return console.export_svg(title="", code_format=template)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the terminal session of a command.")
    parser.add_argument("picture", type=Path, help="SVG to write")
    parser.add_argument("--omit", metavar="REGEX", help="leave matching lines out")
    parser.add_argument("--width", type=int, default=100, help="columns (default: 100)")
    parser.add_argument("command", nargs="+", help="after --")
    given = parser.parse_args()
    try:
        lines = [Text.from_ansi(line) for line in printed(given.command, given.width)]
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(error.cmd)} ended with {error.returncode}: no picture")
    picture = draw(shlex.join(given.command), without(lines, given.omit), given.width)
    given.picture.write_text(picture, encoding="utf-8")
    print(given.picture)


if __name__ == "__main__":
    main()
