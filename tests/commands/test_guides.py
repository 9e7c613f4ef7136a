"""Every command of the guides runs and prints what the guide shows; every template parses."""

import re

import pytest

from tests.guides import (
    GUIDES,
    ROOT,
    RUN_ELSEWHERE,
    line_matches,
    output_matches,
    rewritten,
    run_all,
    steps_of,
    template_commands,
)

RUN_HERE = [
    path for path in GUIDES if path.name not in RUN_ELSEWHERE and steps_of(path.read_text())
]


@pytest.mark.long
@pytest.mark.realdata
@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_a_guide_prints_what_it_shows(path, tmp_path):
    page = path.read_text()
    for step, printed in run_all(page, tmp_path / "scratch"):
        assert output_matches(step.expected, printed.splitlines()), (
            f"{path.name}:{step.first}: {step.source}\n--- expected\n"
            + "\n".join(step.expected)
            + f"\n--- printed\n{printed}\nwrite it again: python -m tests.regenerate_guides"
        )


@pytest.mark.parametrize("path", [*GUIDES, ROOT / "data" / "README.md"], ids=lambda path: path.stem)
def test_templates_and_commands_parse(path):
    """No page names a command or flag that does not exist."""
    import typer

    from ance_cli.cli.main import app

    program = typer.main.get_command(app)
    page = path.read_text()
    for words in template_commands(page):
        program.commands[words[0]].make_context(words[0], words[1:])  # parses, and does nothing
    typed = [step.source for step in steps_of(page) if not step.is_python]
    for words in template_commands("```sh\n" + "\n".join(typed) + "\n```\n"):
        known = {name for each in program.commands[words[0]].params for name in each.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_a_guide_is_short(path):
    assert len(path.read_text().split()) <= (900 if path.stem == "recipes" else 700)


def test_what_the_page_of_templates_would_miss():
    shell = "cd x && .venv/bin/ance encode --ckpt a \\\n  -o b >>log 2>&1\nance mine | jq ."
    page = f"```sh\n{shell}\n```\n"
    assert template_commands(page) == [["encode", "--ckpt", "a", "-o", "b"], ["mine"]]
    assert template_commands("```console\n$ ance mine\n```\n") == []


def test_steps_are_commands_with_what_they_printed():
    shell = "```console\n$ echo a \\\n  b\na b\n$ true\n```\n"
    page = f"{shell}\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    found = [(step.source, step.expected, step.first) for step in steps_of(page)]
    assert found == [("echo a \\\n  b", ["a b"], 3), ("true", [], 5), ("print(1)\n", ["1"], 12)]


@pytest.mark.parametrize(
    ("expected", "line", "matches"),
    [
        ("made ... in ... s", "made emb in 3.1 s", True),
        ("RR@10   0.412", "RR@10 0.420", True),
        ("RR@10   0.412", "RR@10 0.512", False),
        ("pairs 41", "pairs 42", False),
        ("a.b", "axb", False),
    ],
)
def test_lines_compare(expected, line, matches):
    assert line_matches(expected, line) is matches


def test_outputs_compare_and_are_renewed(tmp_path):
    printed = ["reading", "a 1", "b 2", "made x in 2.5 s"]
    assert output_matches(["reading", "...", "made x in ... s"], printed)
    assert not output_matches(["reading", "made x in ... s"], printed)
    assert output_matches(["..."], []) and not output_matches(["a"], [])
    stale = ["reading", "...", "created x in ... s"]
    assert rewritten(stale, printed, tmp_path) == ["reading", "...", "made x in ... s"]
    assert rewritten([], printed, tmp_path)[-1] == "made x in ... s"


def test_every_guide_is_linked():
    index = (ROOT / "docs" / "index.md").read_text()
    assert set(re.findall(r"\(guides/([\w-]+\.md)\)", index)) == {path.name for path in GUIDES}
