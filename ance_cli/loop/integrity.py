"""Finds the parts of a generation that were changed after they were made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ance_cli.errors import AnceError
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.generation_folder import GenerationFolder, is_unchanged
from ance_cli.progress import Reporter


def damaged_parts(generation: GenerationFolder) -> Iterator[Path]:
    """The parts of an unfinished generation whose content differs from their manifests."""
    for part in (generation.embeddings, generation.guard_embeddings):
        if part.exists():
            try:
                for _ in Embeddings(part).blocks():
                    pass
            except AnceError:
                yield part
    if (part := generation.index).exists() and not is_unchanged(part, "index", part / "index"):
        yield part
    if (part := generation.candidates).exists() and not is_unchanged(part, "candidates"):
        yield part
    for part in (generation.dev_run, generation.guard_run):
        if part.exists() and not is_unchanged(part, "run", part):
            yield part
    if (part := generation.negatives).exists() and not is_unchanged(part, "negatives", part):
        yield part


def negatives_to_compare(before: GenerationFolder | None, reporter: Reporter) -> Path | None:
    """The published negatives, which the audit compares the new negatives with; None, with a
    warning, if they were changed."""
    if before is None or not (path := before.negatives).exists():
        return None
    if not is_unchanged(path, "negatives", path):
        reporter.warn(
            f"{path}: was changed after it was made; the audit will not compare the new "
            "negatives with it"
        )
        return None
    return path
