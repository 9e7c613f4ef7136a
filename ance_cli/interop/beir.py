"""BEIR: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`.

Every command reads this layout, so an import only makes a checked copy."""

from __future__ import annotations

from pathlib import Path

from ance_cli.formats.dataset import locate, splits_of
from ance_cli.formats.labels import read_labels
from ance_cli.interop import tables
from ance_cli.interop.records import Head, Part, Role, file_part


def is_layout(folder: Path) -> bool:
    """Whether `--data` would find a corpus in this folder."""
    return any((folder / f"corpus.jsonl{ending}").exists() for ending in ("", ".gz", ".zst"))


def parts_of(folder: Path) -> list[Part]:
    """The parts of a dataset folder; a split has the name of its file."""
    found = locate(folder)
    what = "BEIR corpus (--data can read this folder directly)"
    parts = [file_part(found.corpus, Role.DOCUMENTS, what, tables.json_documents)]
    if found.queries is not None:
        parts.append(file_part(found.queries, Role.QUERIES, "BEIR queries", tables.json_queries))
    for split in splits_of(folder):
        qrels = locate(folder, split).need("qrels")
        parts.append(file_part(qrels, Role.LABELS, "BEIR labels", read_labels, split))
    return parts


def recognise(path: Path, head: Head) -> Part | None:
    """Recognises files named corpus*.jsonl or queries*.jsonl, and labels with BEIR's header."""
    name = path.name.lower()
    if ".jsonl" in name and name.startswith("corpus"):
        return file_part(path, Role.DOCUMENTS, "BEIR corpus (its name)", tables.json_documents)
    if ".jsonl" in name and name.startswith("queries"):
        return file_part(path, Role.QUERIES, "BEIR queries (its name)", tables.json_queries)
    if head.columns[:2] == ["query-id", "corpus-id"]:
        return file_part(path, Role.LABELS, "BEIR labels (the header)", read_labels)
    return None
