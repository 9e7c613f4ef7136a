"""What users read is in plain words: help, messages, hints and pages."""

import ast
import re
from pathlib import Path

import pytest

import ance_cli.cli.main  # noqa: F401 (registers the commands)
from ance_cli.cli.command import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "ance_cli").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "evidence" not in path.parts),
]
"""Pages in docs/evidence keep the words of their time."""

BANNED = re.compile(
    r"\b(mend(s|ed)?|told|hears|goes|stands|beside|anew|of it|that is meant)\b", re.IGNORECASE
)
SAYING = {"say", "warn", "check", "as_bad_input", "Problem"}
"""Other functions than errors whose arguments are messages or hints."""


def banned(text):
    return sorted({found[0].lower() for found in BANNED.finditer(text)})


def name_of(function):
    return getattr(function, "id", None) or getattr(function, "attr", None)


def errors_in(trees):
    """The names of `AnceError` and of every class that is derived from it."""
    classes = [each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.ClassDef)]
    names = {"AnceError"}
    for _ in range(3):  # no class is derived more than three times
        names |= {each.name for each in classes if names & set(map(name_of, each.bases))}
    return names


ERRORS = errors_in([ast.parse(path.read_text()) for path in SOURCES])


def messages(source):
    """(line, text) of the arguments of errors, `say` and `warn`, in the source of a module.

    A name that the module assigns a string, such as a hint that several errors share, counts as
    that string.
    """
    tree = ast.parse(source)
    constants = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and name_of(call.func) in ERRORS | SAYING:
            for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                if isinstance(argument, ast.Name):
                    argument = constants.get(argument.id, argument)
                for part in ast.walk(argument):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield call.lineno, part.value


def test_messages_are_found_in_errors_hints_and_reports():
    source = (
        '_HINT = "told"\n'
        'raise BadInput(f"{path}: it stands", hint=_HINT)\n'
        'reporter.warn("anew" if x else "y")\n'
        'print("goes")\n'
    )
    assert {"BadInput", "StageFailed", "RankFailed"} <= ERRORS
    found = [text for _, text in messages(source)]
    assert banned(" ".join(found)) == ["anew", "stands", "told"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_and_hints_are_in_plain_words(path):
    found = [(line, text) for line, text in messages(path.read_text()) if banned(text)]
    assert not found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_plain_words(name):
    command = COMMANDS[name]
    texts = [command.help, *(each.setting.help for each in command.settings)]
    assert not [text for text in texts if banned(text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_in_plain_words(path):
    lines = enumerate(path.read_text().splitlines(), start=1)
    words = [(number, re.sub(r"`[^`]*`", "", line)) for number, line in lines]  # without code
    assert not [(number, line) for number, line in words if banned(line)]
