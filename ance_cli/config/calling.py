"""How a command is called: settings that every command understands in the same way."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.setting import DATA, RUNTIME, Config, Setting
from ance_cli.config.toml_file import FILE, NONE

LONGEST_LINE = 16
"""MiB. Memory grows with the longest text, which a tokenizer reads whole."""


@dataclass(frozen=True, kw_only=True)
class CallSettings(Config):
    """The flags behind a `Call`; each command takes the first five, and those others it needs."""

    config: Annotated[Path, Setting(
        f"Settings file; {NONE} = read none (default: {FILE} in the working folder, if it exists).",
        RUNTIME, metavar="FILE")] | None = None
    cache_dir: Annotated[Path, Setting(
        "Folder for caches (default: the user's cache folder).", RUNTIME,
        metavar="DIR", only_asked=True)] | None = None
    dry_run: Annotated[bool, Setting(
        "Show what the command would do, and write nothing.", RUNTIME,
        flags=("--dry-run", "-n"))] = False
    quiet: Annotated[bool, Setting(
        "Print only warnings and errors.", RUNTIME, flags=("--quiet", "-q"),
        only_asked=True)] = False
    json: Annotated[bool, Setting(
        "Print the summary as one JSON object on stdout.", RUNTIME)] = False
    force: Annotated[bool, Setting(
        "Replace an existing output that ance made.", RUNTIME, flags=("--force", "-f"),
        only_asked=True)] = False
    threads: Annotated[int, Setting(
        "CPU threads of this process; 0 = every core.", RUNTIME, at_least=0, at_most=1024)] = 0
    trust_remote_code: Annotated[bool, Setting(
        "Run the code that lies in a checkpoint's folder; read it first. It is noted in the "
        "manifests of what it makes.", RUNTIME, only_asked=True)] = False
    skip_bad: Annotated[bool, Setting(
        "Skip broken input lines, and report how many were skipped, instead of stopping at the "
        "first.", DATA)] = False
    longest_line: Annotated[int, Setting(
        "Longest line of an input that is read, decompressed, in MiB.", DATA, at_least=1,
        at_most=4096, metavar="MIB")] = LONGEST_LINE
