"""Help, reference and flags hold together."""

from pathlib import Path

import pytest

from ance_cli.cli.command import COMMANDS
from ance_cli.cli.reference import reference

ROOT = Path(__file__).parents[2]


def test_the_main_commands_exist():
    assert {"demo", "bm25-negatives", "encode", "index", "mine", "train-segment", "search", "eval",
            "refresh", "loop"} <= set(COMMANDS)  # fmt: skip


def test_the_generated_reference_is_the_programs():
    assert (ROOT / "docs" / "reference" / "commands.md").read_text() == reference()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_docs(name):
    command = COMMANDS[name]
    assert "Example: `" in command.help and "ance " in command.help
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
    assert f"ance {name}" in pages.replace(reference(), "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_whole_sentence_of_help_and_a_spelling_of_its_own(name):
    spelled = [flag for each in COMMANDS[name].settings for flag in each.flags]
    assert len(spelled) == len(set(spelled))
    for each in COMMANDS[name].settings:
        assert each.setting.help.endswith("."), each.name


def test_help_and_version(ance):
    assert "Usage" in ance("--help").stdout
    assert "--depth" in ance("mine", "--help").stdout
    assert ance("--version").stdout.startswith("ance 0.")
    assert "Usage" in ance("encode", "-h").stdout


@pytest.mark.parametrize(
    ("word", "command"),
    [("train", "train-segment"), ("embed", "encode"), ("help", "--help"), ("mien", "mine")],
)
def test_a_command_of_another_name_is_suggested(inside, word, command):
    shown = " ".join(inside(word, code=2).stderr.split())
    assert f"No such command '{word}'. Did you mean '{command}'" in shown
