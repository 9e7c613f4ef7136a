"""Folders of documents: .txt, .md, .html and .pdf files, each cut into passages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput
from ance_cli.formats.dataset import Passage
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.jsonl import open_input, refuse
from ance_cli.interop.chunking import Chunker
from ance_cli.interop.columns import as_id
from ance_cli.interop.records import Chunk, Part, Record, Role

MARKDOWN, HTML, PDF, PLAIN = (".md", ".markdown"), (".html", ".htm"), (".pdf",), (".txt",)
ENDINGS = (*MARKDOWN, *HTML, *PDF)
"""Files that are documents in any folder; a .txt file is one if no format recognises it."""

_HEADING = re.compile(r"^#\s+(.+?)\s*#*$", re.MULTILINE)
_LARGEST = 64 << 20
"""Bytes of the largest file that is read whole."""


class Document(NamedTuple):
    """The text of a file."""

    title: str
    text: str
    is_markdown: bool = False


def part_of(folder: Path, files: Sequence[Path], chunker: Chunker) -> Part:
    """The documents of a folder; a document's id is its path below the folder."""
    kinds = sorted({path.suffix.lower() for path in files})
    return Part(
        str(folder),
        Role.DOCUMENTS,
        f"documents ({len(files):,} files: {', '.join(kinds)}), cut into passages of at most "
        f"{chunker.characters:,} characters",
        lambda skipped: _passages(folder, files, chunker, skipped),
        lambda: hash_json(
            {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
            | {"characters": chunker.characters}
        ),
        by_row=True,
        count=len(files),
        is_cut=True,
    )


def _passages(
    folder: Path, files: Sequence[Path], chunker: Chunker, skipped: SkippedLines | None
) -> Iterator[tuple[int, Record]]:
    for number, path in enumerate(files, start=1):
        try:
            document = read_document(path)
            if not document.text.strip():
                raise BadInput(f"{path}: has no text", hint="leave it out, or use --skip-bad")
        except BadInput as problem:
            refuse(problem, skipped)
            continue
        parent_id = as_id(path.relative_to(folder).as_posix())
        passages = chunker.cut(document.text, document.is_markdown)
        for place, text in enumerate(passages, start=1):
            yield number, Chunk(Passage(f"{parent_id}#{place}", document.title, text), parent_id)


def read_document(path: Path) -> Document:
    """The title and text of a .txt, .md, .html or .pdf file; `BadInput` if it cannot be read.

    Without a title of its own a document has that of its file's name.
    """
    if path.stat().st_size > _LARGEST:
        raise BadInput(f"{path}: is larger than {_LARGEST >> 20} MiB", hint="split the file")
    ending = path.suffix.lower()
    document = _of_pdf(path) if ending in PDF else _of_text(path, ending)
    return document._replace(title=" ".join(document.title.split()) or path.stem)


def _of_text(path: Path, ending: str) -> Document:
    with open_input(path) as handle:
        data = handle.read()
    if ending in HTML:
        return _of_html(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(
            f"{path}:{line}: not valid UTF-8", hint="convert it: iconv -f latin1 -t utf-8"
        ) from None
    if ending in MARKDOWN:
        heading = _HEADING.search(text)
        return Document(heading[1] if heading else "", text, is_markdown=True)
    return Document("", text)


def _of_html(data: bytes) -> Document:
    from bs4 import BeautifulSoup

    page = BeautifulSoup(data, "html.parser")  # finds the encoding that the page declares
    title = page.title.get_text() if page.title else ""
    for element in page(["script", "style", "noscript", "template", "nav", "header", "footer"]):
        element.decompose()
    lines = (line.strip() for line in (page.body or page).get_text("\n").splitlines())
    return Document(title, "\n".join(line for line in lines if line))


def _of_pdf(path: Path) -> Document:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        title = (reader.metadata.title if reader.metadata else None) or ""
        return Document(title, "\n\n".join(page.extract_text() for page in reader.pages))
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # a damaged file raises what its broken part happens to break
        raise BadInput(
            f"{path}: cannot be read as PDF ({type(error).__name__}: {error})",
            hint="leave the file out, or skip such files with --skip-bad",
        ) from error
