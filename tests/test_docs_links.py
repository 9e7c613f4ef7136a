"""The pages hold together: links and anchors resolve, what they name in the code exists, and
there is not too much of them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ance_cli"
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
READING = [page for page in PAGES if not page.is_relative_to(ROOT / "docs" / "evidence")]
OLD_NAMES = ("release-notes.md", "moved-names.md")
CURRENT = [page for page in PAGES if page.name not in OLD_NAMES]
MOST_WORDS = 29_000

FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|^\[[^\]]+\]: +(\S+)", re.MULTILINE)
PATH = re.compile(r"\b((?:ance_cli|tests|benchmarks)/[\w/.-]*\w\.py)\b")
DOTTED = re.compile(r"\bance_cli((?:\.\w+)+)")
FILES = {"json", "jsonl", "toml"}
"""Endings by which `loop.json` is a file and no name in the room `loop`."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(text: str) -> Iterator[str]:
    """The relative targets of a page's links and images, outside code."""
    for match in LINK.finditer(SPAN.sub("``", FENCE.sub("", text))):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings: lower case, without punctuation, spaces
    as hyphens, and numbers after those that repeat."""
    found: Counter[str] = Counter()
    slugs = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#* *$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        slugs.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return slugs


def broken_links(page: Path) -> Iterator[str]:
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield target
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
            yield f"{target}: no such heading"


@cache
def names_in(node_or_file: Path | ast.ClassDef) -> dict[str, ast.AST]:
    """name -> its definition, of a module or a class; imported names too."""
    body = (
        ast.parse(node_or_file.read_text()).body
        if isinstance(node_or_file, Path)
        else node_or_file.body
    )
    found: dict[str, ast.AST] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


def exists(dotted: str) -> bool:
    """Whether `retrieval.exact.exact_top_k` is a module of the package, or a name in one."""
    at, parts = PACKAGE, dotted.split(".")
    while parts and (at / parts[0]).is_dir():
        at /= parts.pop(0)
    if not parts:
        return True
    module = at / f"{parts[0]}.py"
    if module.is_file():
        parts.pop(0)
    else:
        module = at / "__init__.py"
    scope: Path | ast.AST = module
    for part in parts:
        if not isinstance(scope, Path | ast.ClassDef) or part not in names_in(scope):
            return False
        scope = names_in(scope)[part]
    return True


def missing_names(text: str) -> Iterator[str]:
    """What a page names of the code and is not there: files, and dotted names."""
    for path in PATH.findall(text):
        placeholder = any(part.isupper() for part in Path(path).with_suffix("").parts)
        if not placeholder and not (ROOT / path).is_file():
            yield path
    for dotted in DOTTED.findall(text):
        if not exists(dotted[1:]):
            yield f"ance_cli{dotted}"
    rooms = "|".join(sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
    for _, span in SPAN.findall(FENCE.sub("", text)):
        named = re.fullmatch(rf"(?:{rooms})(?:\.\w+)+", span)
        if named and span.rpartition(".")[2] not in FILES and not exists(span):
            yield span


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_what_a_page_names_exists(page):
    assert list(missing_names(page.read_text())) == []


def test_the_pages_stay_short():
    words = {name_of(page): len(page.read_text().split()) for page in READING}
    assert sum(words.values()) <= MOST_WORDS, words


def test_the_checks_find_what_is_wrong(tmp_path):
    (tmp_path / "other.md").write_text(
        "# What's `new`, in 2\n\n```\n# no heading\n```\n\n## A\n\n## A\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#whats-new-in-2) [b](other.md#a-1) [c](other.md#no-heading) ![d](gone.png)\n"
        "[e](#here) [f](https://example.org/gone) `[g](gone.md)`\n\n## Here\n"
    )
    assert list(broken_links(page)) == ["other.md#no-heading: no such heading", "gone.png"]
    text = (
        "`ance_cli/training/loss.py` ance_cli/training/gone.py `ance_cli/cli/NAME.py` "
        "ance_cli.training.loss.nll ance_cli.training.loss.gone `models.dual.DualEncoder.shared` "
        "`models.dual.DualEncoder.gone` `mining.gone` `config.TrainConfig` `training.loss`"
    )
    assert list(missing_names(text)) == [
        "ance_cli/training/gone.py",
        "ance_cli.training.loss.gone",
        "models.dual.DualEncoder.gone",
        "mining.gone",
    ]
