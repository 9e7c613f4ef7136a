"""Every page is in the index, and the README's commands are the ones that run."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or name.startswith("evidence/") or f"({name})" in index


def test_the_two_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e '.[demo]' && ance demo" in readme
    test_command = "pip install -e '.[test]' && pytest"
    assert test_command in readme
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 600
