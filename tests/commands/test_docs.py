"""The pages are consistent: links and names resolve, the README's commands are the real ones."""

import importlib
import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVIDENCE = ROOT / "docs" / "evidence"
MOST_WORDS = 25_000
ROOMS = sorted(path.parent.name for path in (ROOT / "ance_cli").glob("*/__init__.py"))
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", without_code(page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        kept = [c for c in text.lower() if c in " -_" or unicodedata.category(c)[0] in "LN"]
        slug = "".join(kept).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_anchors_resolve(page):
    for target, anchor in re.findall(
        r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", without_code(page.read_text())
    ):
        if "://" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), f"links to {target}"
        if anchor:
            assert anchor in anchors(path), f"links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_modules_and_functions_that_a_page_names_exist(page):
    if page.name == "release-notes.md":  # names what was renamed
        return
    text = page.read_text()
    for path in re.findall(r"\b(?:ance_cli|tests|benchmarks)/[\w/]+\.py\b", text):
        assert (ROOT / path).exists(), path
    rooms = "|".join(ROOMS)
    for dotted in re.findall(rf"`(?:ance_cli\.)?((?:{rooms})\.[\w.]+)`", text):
        if dotted.endswith((".py", ".toml", ".json", ".jsonl", ".md")):
            continue
        room, module, *names = dotted.split(".")
        found = importlib.import_module(f"ance_cli.{room}.{module}")
        for name in names:
            assert hasattr(found, name), dotted
            found = getattr(found, name)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or name.startswith("evidence/") or f"({name})" in index, name


def test_the_pages_are_short_enough_to_be_read():
    read = [page for page in PAGES if EVIDENCE not in page.parents]
    assert sum(len(page.read_text().split()) for page in read) <= MOST_WORDS
    assert len((ROOT / "README.md").read_text().split()) <= 600


def test_the_two_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e '.[demo]' && ance demo" in readme
    test_command = "pip install -e '.[test]' && pytest"
    assert test_command in readme
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()
