"""Manifests: how an artifact was made, and whether what is read is what was written.

An artifact that is a folder contains `manifest.json`; one that is a file has `NAME.manifest.json`
next to it. The manifest is written last, after the content is durable. `shaped_by` has the settings
that shape the content, with `auto` resolved; `inputs` has the fingerprint of each input. The
artifact's own fingerprint is a hash of kind, versions, `shaped_by` and `inputs`. `ran_with` is
information for people and is never compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ance_cli.config.sets import OutputDtype
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.jsonl import is_stream
from ance_cli.formats.records import check_record, read_record

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

ALGORITHM_VERSIONS = {
    "embeddings": 2,
    "index": 1,
    "candidates": 1,
    "negatives": 2,
    "run": 1,
    "answers": 1,
    "generation": 1,
    "bm25-index": 1,
    "dataset": 1,
    "tokens": 2,
    "diagnosis": 1,
    "evaluation": 1,
    "export": 2,
    "export-folder": 2,
}
"""A version is raised when the same inputs give another content, which makes old outputs stale."""

FOLDERS = {"embeddings", "index", "candidates", "generation", "bm25-index", "dataset", "tokens",
            "export-folder"}  # fmt: skip


def manifest_name(output: Path, kind: str) -> Path:
    """The path of an artifact's manifest; for a link, that of its target unless it has its own."""
    if kind in FOLDERS:
        return output / MANIFEST
    if output.is_symlink() and (own := output.with_name(f"{output.name}.{MANIFEST}")).exists():
        return own
    return atomic.companion(output, f"{{}}.{MANIFEST}")


def read_manifest(output: Path, kind: str) -> dict[str, Any]:
    """Read the manifest of an existing artifact.

    Raises `Mismatch` if the artifact has no manifest or is of another kind, or if the manifest was
    edited, so that its fingerprint is wrong; `BadInput` if the artifact does not exist or a part of
    the manifest is missing.
    """
    path = manifest_name(output, kind)
    if not output.exists():
        raise BadInput(f"{output}: no such {kind}", hint=_MAKERS.get(kind))
    hint = _MAKERS.get(kind)
    try:
        manifest = read_record(path, dict[str, Any], hint)
    except (FileNotFoundError, NotADirectoryError):
        raise Mismatch(
            f"{output}: has no {path.name}, so its model and data are unknown",
            hint=hint,
        ) from None
    if manifest.get("kind") != kind:
        raise Mismatch(
            f"{output}: is of kind {manifest.get('kind')!r}, expected {kind!r}", hint=hint
        )
    _check_fingerprint(path, manifest)
    check_record(manifest.get("content"), _CONTENT.get(kind, Content), f"{path}: content", hint)
    check_record(manifest.get("stats"), _STATS.get(kind, dict), f"{path}: stats", hint)
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], hint: str | None) -> None:
    """Raise `BadInput` if a file of a folder differs from its hash in the manifest.

    A file whose size and modification time are known is not read again. Manifests of version 0.1.0
    have no hashes of single files: there is nothing to compare then.
    """
    for name, noted in manifest["content"].get("files_xxh3", {}).items():
        if hash_file(folder / name) != noted:
            raise BadInput(
                f"{folder / name}: is damaged: its hash differs from the one in the manifest",
                hint=hint,
            )


def check_sidecar(path: Path) -> dict[str, Any] | None:
    """The sidecar manifest of a file that is read; None if it has none, as files of other programs.

    Raises `BadInput` if the file differs from the hash in its manifest.
    """
    sidecar = path.with_name(f"{path.name}.{MANIFEST}")
    if is_stream(path) or not path.is_file():
        return None
    # a command that replaces both may be between its two renames, or was killed there
    for place in (sidecar, atomic.partial_name(sidecar), sidecar):
        try:
            found = read_record(place, dict[str, Any], _own_file(sidecar))
        except (FileNotFoundError, NotADirectoryError):
            continue
        noted = found.get("content", {})
        noted = noted.get("xxh3") if isinstance(noted, dict) else None
        if noted is None and "fingerprint" not in found:
            return None  # another program's
        if noted == hash_file(path):
            if "kind" in found:
                _check_fingerprint(place, found)
            return found
    if not sidecar.exists():
        return None
    raise BadInput(
        f"{path}: differs from its manifest: the file was changed after it was made",
        hint=_own_file(sidecar),
    )


def _own_file(sidecar: Path) -> str:
    return (
        "make the file again with --force, or, if the change was meant, remove "
        f"{sidecar}: then it is read as a file of your own"
    )


def _check_fingerprint(path: Path, manifest: dict[str, Any]) -> None:
    if manifest.get("fingerprint") != hash_json({name: manifest.get(name) for name in IDENTITY}):
        raise Mismatch(
            f"{path}: was edited after ance wrote it: its settings and inputs do not match its "
            "fingerprint",
            hint="restore the file, or make the artifact again with --force",
        )


IDENTITY = ("kind", "format_version", "algorithm_version", "shaped_by", "inputs")
"""The keys of which the fingerprint is a hash."""


@dataclass(kw_only=True)
class Content:
    files: dict[str, int]
    files_xxh3: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class HashedContent(Content):
    xxh3: str


@dataclass(kw_only=True)
class _TokensContent(Content):
    docs: int
    rows: int
    tokens: int
    block_docs: int
    block_xxh3: list[str]
    ids_xxh3: str


@dataclass(kw_only=True)
class _EmbeddingsContent(Content):
    rows: int
    docs: int
    dim: int
    dtype: OutputDtype
    block_docs: int
    block_xxh3: list[str]


@dataclass
class _IndexStats:
    max_segments: int


@dataclass
class _GenerationStats:
    checkpoint_step: int
    dev: dict[str, float]


_CONTENT: dict[str, type[Content]] = {
    "tokens": _TokensContent,
    "embeddings": _EmbeddingsContent,
    "index": HashedContent,
    "negatives": HashedContent,
    "run": HashedContent,
    "answers": HashedContent,
    "evaluation": HashedContent,
}
_STATS: dict[str, type] = {"index": _IndexStats, "generation": _GenerationStats}
"""What the readers of an artifact need from its manifest, by kind (default: `Content`)."""

_MAKERS = {
    "tokens": "make it with: ance tokenize --ckpt CHECKPOINT --data DATASET -o DIR",
    "embeddings": "make it with: ance encode --ckpt CHECKPOINT --data DATASET -o DIR",
    "index": "make it with: ance index EMBEDDINGS -o DIR",
    "candidates": "make it with: ance mine",
    "generation": "remove the generation's folder; the next ance refresh makes a new one",
}
