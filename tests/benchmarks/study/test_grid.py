"""The cells of the study: they hold together, and `ance` understands every command in them."""

import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ance_cli.errors import UsageProblem
from benchmarks.study.__main__ import choose
from benchmarks.study.cell import Cell, Placeholders, in_order
from benchmarks.study.grid import grid

CELLS = grid()
PLACES = Placeholders(data=Path("/d"), weights=Path("/w"), work=Path("/r"), threads=3)
_WRITTEN = ("-o", "--per-query", "--figures")


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_ance_understands_every_command(cell):
    import typer

    from ance_cli.cli.main import app

    program = typer.main.get_command(app)
    for command in cell.commands:
        words = PLACES.words(command)
        assert shlex.split(command)[0] == "ance"
        known = program.commands[words[0]]
        known.make_context(words[0], [*words[1:], "--json"])  # parses, and does nothing
        if "--threads" in {name for each in known.params for name in each.opts}:
            heavy = words[0] not in ("bm25-negatives", "eval") and "lucene" not in words
            assert ("--threads" in words) == (heavy and "0 --total-steps" not in command), command


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_what_a_cell_reads_is_made_by_what_it_needs(cell):
    made = [name for need in cell.needs for name in CELLS[need].makes]
    for command in cell.commands:
        words = shlex.split(command)
        for before, word in pairwise(words):
            if word.startswith("{work}") and before not in _WRITTEN:
                assert any(_within(word, there) or _within(there, word) for there in made), word
        made += [after for flag, after in pairwise(words) if flag in _WRITTEN]
        if words[1] == "refresh":
            made.append(words[2])
    assert all(any(_within(name, there) for there in made) for name in cell.makes)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith((f"{folder}/", f"{folder}."))


def test_cells_are_short_and_write_apart():
    assert all(0 < cell.minutes <= 30 for cell in CELLS.values())
    outputs: dict[str, str] = {}
    for cell in CELLS.values():
        own = {match for command in cell.commands for match in re.findall(r"-o (\S+)", command)}
        if cell.name.startswith(("later/denoised", "later/margin-mse")):
            continue  # the parts of one run
        for output in own:
            assert outputs.setdefault(output, cell.name) == cell.name
    named = [arm for arm in CELLS if arm.startswith("table1/")]
    for arm in ("bm25", "bm25-nce", "bm25-bm25+rand", "bm25-ance"):
        assert [f"table1/{arm}/seed-{seed}" for seed in (42, 43, 44)] == [
            name for name in named if name.startswith(f"table1/{arm}/")
        ]


def test_a_recipe_is_of_the_commands():
    cell = Cell(name="a", commands=("ance fuse {work}/x",), minutes=1)
    assert cell.recipe == replace(cell, minutes=2, seed=1).recipe
    assert cell.recipe != replace(cell, commands=("ance fuse {work}/y",)).recipe


def test_a_recipe_changes_with_what_is_read():
    cells = [_cell("c", "b"), _cell("b", "a"), _cell("a")]
    before = in_order(cells)
    after = in_order([*cells[:2], replace(cells[2], commands=("ance fuse {work}/x",))])
    assert all(after[name].recipe != before[name].recipe for name in "abc")


def test_placeholders_are_filled_after_the_words_are_split():
    places = replace(PLACES, work=Path("/my runs"))
    assert places.words("ance eval {work}/a.trec --measures 'RR@10 R@100' {threads}") == [
        "eval", "/my runs/a.trec", "--measures", "RR@10 R@100", "3",
    ]  # fmt: skip
    with pytest.raises(UsageProblem, match="{home} is no placeholder"):
        places.fill("{home}/x")


def test_needs_come_first():
    cells = [_cell("a", "c"), _cell("b"), _cell("c", "b")]
    assert list(in_order(cells)) == ["b", "c", "a"]
    with pytest.raises(ValueError, match="a needs x, which is no cell"):
        in_order([_cell("a", "x")])
    with pytest.raises(ValueError, match="a -> b -> a"):
        in_order([_cell("a", "b"), _cell("b", "a")])
    with pytest.raises(ValueError, match="two cells have one name"):
        in_order([_cell("a"), _cell("a")])


def _cell(name: str, *needs: str, seed: int | None = None) -> Cell:
    return Cell(name=name, commands=(), needs=needs, seed=seed, minutes=1)


def test_patterns_and_seeds_choose():
    cells = in_order([_cell("t/a/seed-1", seed=1), _cell("t/a/seed-2", seed=2), _cell("t/ab")])
    assert choose(cells, [], []) == list(cells)
    assert choose(cells, ["t/a"], []) == ["t/a/seed-1", "t/a/seed-2"]
    assert choose(cells, ["*seed-2", "t/ab"], []) == ["t/a/seed-2", "t/ab"]
    assert choose(cells, ["t"], [1]) == ["t/a/seed-1", "t/ab"]
    with pytest.raises(UsageProblem, match="'x' names no cell"):
        choose(cells, ["x"], [])
