"""The guides as programs: their commands, the output that is printed below them, and a runner.

A guide is a page of `docs/guides`. A block fenced ```console holds `$ command` lines, each followed
by what the command printed; `$ cd DIR` changes the folder of the commands after it. A block fenced
```python runs as a program, and a ```text block right below holds what it printed. In printed
output `...` matches anything, alone on a line any number of lines; white space is compared folded,
numbers with a decimal point within `TOLERANCE` (sums run in another order on another CPU). A
comment `<!-- scratch: NAME = PLACE; ... -->` names what is copied into the guide's scratch folder
first; `PLACE every N` is a sample of a dataset. Other fences are templates: they are parsed, not
run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from tests.world import data_root

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
RUN_ELSEWHERE = {"from-python.md"}
"""Guides that a test of their own runs (`test_python_page.py`)."""

TOLERANCE = 0.05
"""Of numbers with a decimal point: as a fraction of the printed one, and at least this / 2."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ANY = "..."
_SECONDS = 1800  # of one command, on a machine that has other work


@dataclass
class Step:
    """One command or Python block, and where the lines that it printed are in the page."""

    source: str
    is_python: bool
    expected: list[str]
    first: int
    """Line of the page (from 0) where the printed lines begin."""


def steps_of(page: str) -> list[Step]:
    """What a guide runs, in order."""
    steps: list[Step] = []
    after = -1
    for block in _FENCE.finditer(page):
        language, body = block[1], block[2].splitlines()
        first = page[: block.start(2)].count("\n")
        if language == "console":
            steps += _commands_of(body, first)
        elif language == "python":
            last = first + len(body)
            steps.append(Step(block[2], True, [], last))
            after = last
        elif language == "text" and after >= 0 and not "".join(
            page.splitlines()[after + 1 : first - 1]
        ).strip():  # fmt: skip
            steps[-1].expected, steps[-1].first = body, first
            after = -1
    return steps


def _commands_of(body: list[str], first: int) -> Iterator[Step]:
    step: Step | None = None
    for number, line in enumerate(body, start=first):
        if step is not None and step.source.endswith("\\"):
            step.source += "\n" + line
            step.first = number + 1
        elif line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(line[2:], False, [], number + 1)
        else:
            assert step is not None, f"a console block begins with a command, found {line!r}"
            step.expected.append(line)
    if step is not None:
        yield step


def prepare(page: str, scratch: Path) -> None:
    """Copy what the guide's scratch comment names; `pytest.skip` if its variable is not set."""
    scratch.mkdir()
    found = re.search(r"<!-- scratch: (.*?) -->", page, re.DOTALL)
    for entry in found[1].split(";") if found else ():
        name, place = (part.strip() for part in entry.split("="))
        place, _, every = place.partition(" every ")
        if every:
            _sample(_source(place), scratch / name, int(every))
            continue
        shutil.copytree(_source(place), scratch / name, copy_function=shutil.copyfile)
        for folder, _, _ in os.walk(scratch / name):
            os.chmod(folder, 0o755)  # the source may be read-only


def _source(place: str) -> Path:
    root, _, rest = place.partition("/")
    if root == "demo-encoder":
        from ance_cli.setup.demo import packaged_encoder

        return packaged_encoder()
    return data_root(root.removeprefix("$")) / rest


def _sample(source: Path, target: Path, every: int) -> None:
    """A small part of a dataset: every n-th group of passages (`GROUP_N_...`, as in medquad), and
    the labels and queries that belong to them."""
    lines = (source / "corpus.jsonl").read_text().splitlines(keepends=True)
    ids = [json.loads(line)["_id"] for line in lines]
    groups = list(dict.fromkeys("_".join(name.split("_")[:2]) for name in ids))
    chosen = set(groups[::every])
    kept = {name for name in ids if "_".join(name.split("_")[:2]) in chosen}
    (target / "qrels").mkdir(parents=True)
    (target / "corpus.jsonl").write_text(
        "".join(line for name, line in zip(ids, lines, strict=True) if name in kept)
    )
    judged = set()
    for split in ("train", "dev", "test"):
        header, *rows = (source / "qrels" / f"{split}.tsv").read_text().splitlines(keepends=True)
        rows = [row for row in rows if row.split("\t")[1] in kept]
        judged.update(row.split("\t")[0] for row in rows)
        (target / "qrels" / f"{split}.tsv").write_text(header + "".join(rows))
    with open(source / "queries.jsonl") as queries:
        own = [line for line in queries if json.loads(line)["_id"] in judged]
    (target / "queries.jsonl").write_text("".join(own))


def run_all(page: str, scratch: Path) -> Iterator[tuple[Step, str]]:
    """Run a guide's steps in order; each with what it printed, stderr and stdout together.

    Raises `AssertionError` if a step fails that does not show an error.
    """
    prepare(page, scratch)
    folder = Path()
    for step in steps_of(page):
        if not step.is_python and (inside := re.fullmatch(r"cd (\S+)", step.source)):
            folder /= inside[1]
        else:
            yield step, _run(step, scratch, folder)


def _run(step: Step, scratch: Path, folder: Path) -> str:
    bin_folder = scratch.parent / f"{scratch.name}.bin"
    if not bin_folder.exists():
        bin_folder.mkdir()
        program = bin_folder / "ance"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ance_cli "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", step.source] if step.is_python else ["bash", "-c", step.source]
    found = subprocess.run(
        command,
        cwd=scratch / folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if step.is_python else subprocess.STDOUT,  # libraries talk there
        text=True,
        timeout=_SECONDS,
    )
    may_fail = any(line.startswith("error:") for line in step.expected)
    assert found.returncode == 0 or may_fail, (
        f"exit code {found.returncode}:\n{step.source}\n{found.stdout}{found.stderr or ''}"
    )
    return found.stdout


# ---------------------------------------------------------------- comparing


@cache
def _pattern(expected: str) -> tuple[re.Pattern[str], tuple[float, ...]]:
    parts, numbers = [], []
    for token in re.split(r"(\.\.\.|\d+\.\d+|\s+)", expected.strip()):
        if token == _ANY:
            parts.append(".*?")
        elif re.fullmatch(r"\d+\.\d+", token):
            parts.append(r"(\d+(?:\.\d+)?)")
            numbers.append(float(token))
        else:
            parts.append(r"\s+" if token.isspace() else re.escape(token))
    return re.compile("".join(parts)), tuple(numbers)


def line_matches(expected: str, line: str) -> bool:
    """Whether a printed line is the expected one."""
    pattern, numbers = _pattern(expected)
    found = pattern.fullmatch(line.strip())
    return found is not None and all(
        abs(float(text) - number) <= max(TOLERANCE / 2, TOLERANCE * abs(number))
        for text, number in zip(found.groups(), numbers, strict=True)
    )


def output_matches(expected: list[str], printed: list[str]) -> bool:
    """Whether printed lines are the expected ones; `...` alone stands for any lines."""
    reached = {0}  # how many printed lines the expected ones so far can account for
    for line in expected:
        if line.strip() == _ANY:
            reached = set(range(min(reached), len(printed) + 1)) if reached else set()
        else:
            reached = {
                at + 1 for at in reached if at < len(printed) and line_matches(line, printed[at])
            }
    return len(printed) in reached


# ---------------------------------------------------------------- writing the blocks again

_VARYING = (
    (re.compile(r"\d+(?:\.\d+)? (s|min|step/s|docs/s|tokens/s)\b"), r"... \1"),
    (re.compile(r"(\w+_per_s|seconds|logged)(\s+)[\d.,]+$"), r"\1\2..."),
    (re.compile(r"\b(encode|index|mine|probe|measure|all) \d+(\.\d+)?"), r"\1 ..."),
    (re.compile(r"\b[0-9a-f]{12,}\b"), _ANY),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:+]+"), _ANY),
    (re.compile(r"\d+(?:\.\d+)? GB"), "... GB"),
)


def rewritten(expected: list[str], printed: list[str], scratch: Path) -> list[str]:
    """The expected lines, renewed: what still matches stays as it is written (with its `...`), a
    line that changed is replaced by the printed one, and elided lines stay elided."""
    if output_matches(expected, printed):
        return expected
    lines: list[str] = []
    at = 0
    is_elided = False
    for line in expected:
        if line.strip() == _ANY:
            is_elided = True
            continue
        place = _find(line, printed, at)
        if place is None:
            continue
        lines += _gap(printed[at:place], is_elided, scratch)
        is_match = line_matches(line, printed[place])
        lines.append(line if is_match else _varying(printed[place], scratch))
        at, is_elided = place + 1, False
    return lines + _gap(printed[at:], is_elided, scratch)


def _find(line: str, printed: list[str], at: int) -> int | None:
    for place in range(at, len(printed)):
        if line_matches(line, printed[place]):
            return place
    bare = line.replace(_ANY, "")
    likeness = [SequenceMatcher(None, bare, each).ratio() for each in printed[at:]]
    best = max(likeness, default=0.0)
    return at + likeness.index(best) if best > 0.5 else None


def _gap(printed: list[str], is_elided: bool, scratch: Path) -> list[str]:
    if is_elided:
        return [_ANY] if printed else []
    return [_varying(line, scratch) for line in printed]


def _varying(line: str, scratch: Path) -> str:
    line = line.replace(str(scratch), _ANY).rstrip()
    for pattern, written in _VARYING:
        line = pattern.sub(written, line)
    return line


# ---------------------------------------------------------------- templates

_OPERATORS = set(";&|<>()")


def template_commands(page: str) -> list[list[str]]:
    """The words of every `ance ...` command in blocks that are not run."""
    commands = []
    for block in _FENCE.finditer(page):
        if block[1] in ("sh", "bash", "ini", "yaml"):
            commands += list(_ance_commands(block[2]))
    return commands


def _ance_commands(text: str) -> Iterator[list[str]]:
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"\$\(\([^)]*\)\)|\$\{?\w+\}?", "1", text)  # what the shell puts there
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not re.search(r"(^|[\s/=])ance(\.sbatch)? ", line):
            continue
        lexer = shlex.shlex(line.replace("=/", "= /"), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] | None = None
        for token in [*lexer, ";"]:
            if set(token) <= _OPERATORS:
                if words and token[0] == ">" and words[-1] == "2":
                    words.pop()  # of `2>&1`
                if words and words[0] != "$@":
                    yield words
                words = None
            elif words is not None:
                words.append(token)
            elif token in ("ance", "ance.sbatch") or token.endswith("/ance"):
                words = []
