"""Which pages the site has, their order, and where links out of docs/ lead.

The Markdown files are written for a reader of the repository: README.md is the first page, and a
page links to data/README.md or to a source file by its relative path. On the site README.md is the
home page, docs/index.md the list of all pages, and a file outside docs/ that some page links to is
shown on a page of its own.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.utils import nest_paths

REPOSITORY = Path(__file__).resolve().parents[2]

MOVED = {
    "README.md": "index.md",
    "docs/index.md": "contents.md",
    "data/README.md": "guides/bringing-your-data.md",
}
"""Path in the repository -> page of the site, for pages that are not at their own path."""

SHELVES = ["guides", "reference", "explanations", "evidence"]
"""Folders in the order of the navigation. Others follow by name, then pages that are in none."""

LINK = re.compile(
    r"""(?P<before>\]\(|^\[[^\]]+\]:\s+|(?:src|srcset|href)=")(?P<target>[^)\s"#]+)""",
    re.MULTILINE,
)
"""The target of a Markdown link, of a reference or of an HTML attribute, without its #fragment."""


ITEM = re.compile(r"(?:[-*+]|\d+[.)])\s+")
FENCE = re.compile(r"`{3,}|~{3,}")


def on_files(files: Files, config: Any) -> Files:
    """Add the moved pages and the linked source files, and put all in the order of reading."""
    pages = [file for file in files if source_of(file) not in MOVED]
    for path, uri in MOVED.items():
        pages.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / path)))
    for path in sorted(set(linked_sources(pages))):
        pages.append(
            File.generated(
                config,
                source_page(path),
                content=listing(path),
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
        )
    config.nav = navigation(pages)
    return Files(pages)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point each relative link at the page of the site that shows its target."""
    source = source_of(page.file)

    def rewritten(match: re.Match[str]) -> str:
        path = resolve(source, match["target"])
        if path is None:
            return match[0]
        uri = site_uri(path)
        return match["before"] + posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    return four_spaces(LINK.sub(rewritten, markdown))


def four_spaces(markdown: str) -> str:
    """Indent what is inside of a list item by four spaces a level, as Python-Markdown wants.

    GitHub indents by the width of the marker ("- " two, "1. " three), and needs no empty line
    between a paragraph and a list.
    """
    lines: list[str] = []
    levels: list[int] = []  # the column where the text of each open item begins
    fence, before, tight = "", "", False  # tight: no empty line since the last item began
    for line in markdown.split("\n"):
        text = line.lstrip(" ")
        column = len(line) - len(text)
        item = None if fence else ITEM.match(text)
        if item and before and not levels and text[0].isdigit() and not text.startswith("1"):
            item = None  # a paragraph's line that begins with a number
        if text and not fence and (item or not before):
            while levels and column < levels[-1]:
                levels.pop()
        if item and before and not tight:
            lines.append("")
        if text and (not levels or column >= levels[-1]):
            line = " " * (4 * len(levels) + column - (levels[-1] if levels else 0)) + text
        if mark := FENCE.match(text):
            fence = "" if fence and mark[0].startswith(fence) else fence or mark[0]
        if item:
            levels.append(column + len(item[0]))
        lines.append(line)
        before = text
        tight = bool(item) or (tight and bool(text))
    return "\n".join(lines)


def source_of(file: File) -> str:
    """The path in the repository that a page of the site was made from."""
    for path, uri in MOVED.items():
        if file.generated_by and file.src_uri == uri:
            return path
    return f"docs/{file.src_uri}"


def resolve(source: str, target: str) -> str | None:
    """The path in the repository that a link of `source` names; None if there is no such file."""
    if re.match(r"[a-z]+:|/", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path.startswith("..") or not (REPOSITORY / path).exists():
        return None
    return path


def site_uri(path: str) -> str:
    """The file of the site that shows `path`; a folder is shown by its README or index."""
    for page in (path, f"{path}/README.md", f"{path}/index.md"):
        if page in MOVED:
            return MOVED[page]
        if page.startswith("docs/") and (REPOSITORY / page).is_file():
            return page.removeprefix("docs/")
    return MOVED["docs/index.md"] if f"{path}/".startswith("docs/") else source_page(path)


def source_page(path: str) -> str:
    return f"source/{path}.md"


def is_source(file: File) -> bool:
    return file.src_uri.startswith("source/")


def linked_sources(pages: list[File]) -> Iterator[str]:
    """The files and folders outside docs/ that some page links to, pages of the site excepted."""
    for page in pages:
        if page.is_documentation_page():
            for match in LINK.finditer(page.content_string):
                path = resolve(source_of(page), match["target"])
                if path is not None and site_uri(path) == source_page(path):
                    yield path


def listing(path: str) -> str:
    """A page with the text of a file, or with the names in a folder. Search leaves it out."""
    found = REPOSITORY / path
    if found.is_dir():
        names = (f"{part.name}/" if part.is_dir() else part.name for part in found.iterdir())
        text = "\n".join(sorted(name for name in names if not name.startswith((".", "__py"))))
        language = "text"
    else:
        text = found.read_text(encoding="utf-8")
        language = {".py": "python", ".toml": "toml", ".md": "markdown"}.get(found.suffix, "text")
    fence = "`" * (3 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    head = f"---\ntitle: {path}\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n"
    return f"{head}# `{path}`\n\n{fence} {language}\n{text}\n{fence}\n"


def navigation(pages: list[File]) -> list[Any]:
    """Shelves, and within each the pages in the order of docs/index.md; the rest by name."""
    source = "docs/index.md"
    targets = LINK.findall((REPOSITORY / source).read_text(encoding="utf-8"))
    paths = (resolve(source, target) for _, target in targets)
    linked = [site_uri(path) for path in paths if path is not None]

    def place(uri: str) -> tuple[int, str, int, str]:
        shelf = uri.split("/")[0]
        row = SHELVES.index(shelf) if shelf in SHELVES else len(SHELVES)
        return row, shelf, linked.index(uri) if uri in linked else len(linked), uri

    first = [MOVED["README.md"], MOVED["docs/index.md"]]
    shown = [
        file.src_uri
        for file in pages
        if file.is_documentation_page() and file.src_uri not in first and not is_source(file)
    ]
    shelved = nest_paths(sorted((uri for uri in shown if "/" in uri), key=place))
    project = sorted((uri for uri in shown if "/" not in uri), key=place)
    return [{"Home": first[0]}, first[1], *shelved, {"Project": project}]
