"""Finds the parts of a generation that were changed after they were made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ance_cli.errors import AnceError
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.generation_folder import GenerationFolder
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.manifest import check_files, read_manifest
from ance_cli.progress import Reporter


def damaged_parts(generation: GenerationFolder) -> Iterator[Path]:
    """The parts of an unfinished generation whose content differs from their manifests."""
    if (part := generation.embeddings).exists():
        try:
            for _ in Embeddings(part).blocks():
                pass
        except AnceError:
            yield part
    if (part := generation.index).exists() and not _is_whole(part, "index", part / "index"):
        yield part
    if (part := generation.candidates).exists() and not _is_whole(part, "candidates"):
        yield part
    if (part := generation.dev_run).exists() and not _is_whole(part, "run", part):
        yield part
    if (part := generation.negatives).exists() and not _is_whole(part, "negatives", part):
        yield part


def negatives_to_compare(before: GenerationFolder | None, reporter: Reporter) -> Path | None:
    """The published negatives, which the audit compares the new negatives with; None, with a
    warning, if they were changed."""
    if before is None or not (path := before.negatives).exists():
        return None
    if not _is_whole(path, "negatives", path):
        reporter.warn(
            f"{path}: was changed after it was made; the audit will not compare the new "
            "negatives with it"
        )
        return None
    return path


def _is_whole(part: Path, kind: str, file: Path | None = None) -> bool:
    """Whether a part has the hashes in its manifest: of `file`, if given, and of a folder's
    files."""
    try:
        manifest = read_manifest(part, kind)
        check_files(part, manifest, None)
        return file is None or bool(manifest["content"]["xxh3"] == hash_file(file))
    except AnceError:
        return False
