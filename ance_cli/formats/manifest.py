"""Manifests: what made an artifact, and whether it is what the caller asks for now.

A folder holds `manifest.json`, a file has the sidecar `NAME.manifest.json`. It is written last,
after the content is durable. `shaped_by` holds only what shapes the content, with `auto` resolved,
`inputs` the fingerprint of each input, and the artifact's own fingerprint is a hash over kind,
versions, `shaped_by` and `inputs`. `ran_with` is for people and never compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from ance_cli import __version__
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.journal import RECORDS, Journal
from ance_cli.formats.jsonl import STDIO, compressed, open_output
from ance_cli.formats.records import check_record, read_record

MANIFEST = "manifest.json"
PLAN = "plan.json"
FORMAT_VERSION = 1
AUTO = "auto"

ALGORITHM_VERSIONS = {
    "embeddings": 1,
    "index": 1,
    "candidates": 1,
    "negatives": 2,
    "run": 1,
    "answers": 1,
    "generation": 1,
    "bm25-index": 1,
    "dataset": 1,
    "tokens": 1,
    "diagnosis": 1,
    "export": 1,
    "export-folder": 1,
}
"""Raised when a stage computes something else from the same inputs: old outputs go stale."""

_FOLDERS = {"embeddings", "index", "candidates", "generation", "bm25-index", "dataset", "tokens",
            "export-folder"}  # fmt: skip


def manifest_name(output: Path, kind: str) -> Path:
    """The path of an artifact's manifest."""
    return output / MANIFEST if kind in _FOLDERS else output.with_name(f"{output.name}.{MANIFEST}")


def read_manifest(output: Path, kind: str) -> dict[str, Any]:
    """The manifest of an existing artifact.

    Raises `Mismatch` where it has none, is of another kind, or says of the artifact's making what
    its own fingerprint does not: somebody edited it. `BadInput` if a part is missing.
    """
    path = manifest_name(output, kind)
    if not output.exists():
        raise BadInput(f"{output}: no such {kind}", hint=_MAKERS.get(kind))
    hint = _MAKERS.get(kind)
    try:
        manifest = read_record(path, dict[str, Any], hint)
    except (FileNotFoundError, NotADirectoryError):
        raise Mismatch(
            f"{output}: has no {path.name}, so nothing says which model and data it came from",
            hint=hint,
        ) from None
    if manifest.get("kind") != kind:
        raise Mismatch(
            f"{output}: is of kind {manifest.get('kind')!r}, expected {kind!r}", hint=hint
        )
    if manifest.get("fingerprint") != hash_json({name: manifest.get(name) for name in _IDENTITY}):
        raise Mismatch(
            f"{path}: was edited since ance wrote it: its settings and inputs are not those of its "
            "fingerprint",
            hint="bring the old one back, or make the artifact again with --force",
        )
    check_record(manifest.get("content"), _CONTENT.get(kind, _Content), f"{path}: content", hint)
    check_record(manifest.get("stats"), _STATS.get(kind, dict), f"{path}: stats", hint)
    return manifest


_IDENTITY = ("kind", "format_version", "algorithm_version", "shaped_by", "inputs")
"""What the fingerprint is a hash of."""


@dataclass
class _Content:
    files: dict[str, int]


@dataclass
class _HashedContent(_Content):
    xxh3: str


@dataclass
class _TokensContent(_Content):
    docs: int
    rows: int
    tokens: int
    block_docs: int
    block_xxh3: list[str]
    ids_xxh3: str


@dataclass
class _EmbeddingsContent(_Content):
    rows: int
    docs: int
    dim: int
    dtype: str
    block_docs: int
    block_xxh3: list[str]


@dataclass
class _PendingManifest:
    content: _HashedContent


@dataclass
class _IndexStats:
    max_segments: int


@dataclass
class _GenerationStats:
    checkpoint_step: int
    dev: dict[str, float]


_CONTENT: dict[str, type[_Content]] = {
    "tokens": _TokensContent,
    "embeddings": _EmbeddingsContent,
    "index": _HashedContent,
    "negatives": _HashedContent,
    "run": _HashedContent,
    "answers": _HashedContent,
}
_STATS: dict[str, type] = {"index": _IndexStats, "generation": _GenerationStats}
"""What the readers of an artifact need from its manifest; other kinds need less."""

_MAKERS = {
    "tokens": "make it with: ance tokenize --ckpt CHECKPOINT --data DATASET -o DIR",
    "embeddings": "make it with: ance encode --ckpt CHECKPOINT --data DATASET -o DIR",
    "index": "make it with: ance index EMBEDDINGS -o DIR",
    "candidates": "make it with: ance mine",
    "generation": "remove the generation's folder: the next ance refresh makes another",
}


@dataclass
class Plan:
    """One artifact to be made: its name, what shapes it and what it is made from."""

    kind: str
    output: Path
    shaped_by: dict[str, Any]
    inputs: dict[str, str]
    ran_with: dict[str, Any] = field(default_factory=dict)
    reads: Sequence[Path | str | None] = ()
    """Files and folders that it is made from (None: not there): it may not replace them."""

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "format_version": FORMAT_VERSION,
            "algorithm_version": ALGORITHM_VERSIONS[self.kind],
            "shaped_by": self.shaped_by,
            "inputs": self.inputs,
        }

    @property
    def fingerprint(self) -> str:
        return hash_json(self.identity)

    @property
    def manifest(self) -> Path:
        return manifest_name(self.output, self.kind)

    @property
    def partial(self) -> Path:
        """The folder in which a folder artifact grows."""
        return atomic.partial_name(self.output)

    # ---------------------------------------------------------------- is it there already?

    def published(self, force: bool = False) -> dict[str, Any] | None:
        """The manifest of the output if it is up to date; None where it has to be made.

        Raises `Mismatch`, naming the keys that differ, where the output exists with other settings,
        was made by something else, or was changed since; `force` makes it again instead. Raises
        `UsageProblem` where the output would take the place of what it is made from.
        """
        if self.output == STDIO:
            return None
        spare_inputs(self.output, self.reads)
        if force:
            return None
        self._finish_interrupted_file()
        if not self.output.exists():
            return None
        if self.kind not in _FOLDERS and self.output.is_dir():
            raise Mismatch(
                f"{self.output}: is a folder, and the {self.kind} is a file",
                hint="name a file with -o",
            )
        if not self.manifest.exists():
            if self.output.is_dir() and not any(self.output.iterdir()):
                return None
            raise Mismatch(
                f"{self.output}: exists, and nothing says that ance made it",
                hint="choose another name with -o, or replace it with --force",
            )
        found = read_manifest(self.output, self.kind)
        if differing := self._differences(found):
            raise Mismatch(
                f"{self.output}: exists with other settings: {'; '.join(differing)}",
                hint="choose another name with -o, or replace it with --force",
            )
        for name, size in found["content"]["files"].items():
            path = self.output / name if self.kind in _FOLDERS else self.output
            if not path.exists() or path.stat().st_size != size:
                raise Mismatch(
                    f"{path}: was changed since ance made it",
                    hint="choose another name with -o, or replace it with --force",
                )
        self._finish_interrupted_folder(found)
        return found

    def _differences(self, found: dict[str, Any]) -> list[str]:
        differing = []
        for name in ("format_version", "algorithm_version"):
            if found.get(name) != self.identity[name]:
                differing.append(f"{name} {found.get(name)} -> {self.identity[name]}")
        for part in ("shaped_by", "inputs"):
            old, new = found.get(part, {}), self.identity[part]
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name) and new.get(name) != AUTO:
                    differing.append(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}")
        return differing

    # ---------------------------------------------------------------- folders

    def open_partial(self, force: bool = False, abandon_other: bool = False) -> Path:
        """The folder to build in: the one an interrupted call left, if it was making the same.

        `abandon_other` starts again if that call was making something else; otherwise that is a
        `Mismatch`, since it may hold hours of work.
        """
        self._begin(self.partial, force, abandon_other)
        return self.partial

    def _begin(self, folder: Path, force: bool, abandon_other: bool = False) -> None:
        """Make the partial folder and its plan, or check that the existing one can be continued."""
        if folder.exists() and (force or not (folder / PLAN).exists()):
            atomic.remove(folder)
        if folder.exists():
            try:
                other = read_record(folder / PLAN, dict[str, Any])
            except BadInput:
                other = {}
            if differing := self._differences(other):
                if not abandon_other:
                    raise Mismatch(
                        f"{folder}: an unfinished {self.kind} with other settings is in the way: "
                        f"{'; '.join(differing)}",
                        hint="finish it with its own settings, or drop it with --force",
                    )
                atomic.remove(folder)
        with atomic.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PLAN).exists():
            atomic.write_bytes(folder / PLAN, orjson.dumps(self.identity))

    def publish_folder(
        self, content: dict[str, Any], stats: dict[str, Any], unfinished_only: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Give the partial folder its name, with the manifest inside; returns the manifest.

        `unfinished_only` names files that serve to continue the work; like the plan they go only
        once the folder has its name, so that a full disk loses none of the work. Names that begin
        with a dot are no part of an artifact: a reader that was killed inside the folder has left
        its lease there, and whoever finds it removes it.
        """
        folder = self.partial
        dropped = {folder / name for name in (PLAN, MANIFEST, *unfinished_only)}
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path not in dropped and not _is_hidden(path.relative_to(folder))
        }
        manifest = self._manifest({**content, "files": files}, stats)
        with atomic.disk_errors(self.output):
            atomic.sync_tree(folder)
            (folder / MANIFEST).write_bytes(_dump(manifest))
        atomic.publish_folder(folder, self.output)
        self._tidy(unfinished_only)
        return manifest

    def _tidy(self, unfinished_only: Iterable[str]) -> None:
        """Remove what only an unfinished folder needs; the plan last, as the mark that this is not
        done yet."""
        for name in (*unfinished_only, PLAN):
            (self.output / name).unlink(missing_ok=True)

    def _finish_interrupted_folder(self, found: dict[str, Any]) -> None:
        """Where a stop came after the folder had its name, and before it was tidy."""
        if self.kind not in _FOLDERS or not (self.output / PLAN).exists():
            return
        parts = {*found["content"]["files"], MANIFEST, PLAN}
        with suppress(PermissionError):  # somebody else's, who will tidy it
            self._tidy(
                path.name
                for path in list(self.output.iterdir())
                if path.is_file() and path.name not in parts and not path.name.startswith(".")
            )

    def add_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Add figures to the manifest of the published output; returns the manifest."""
        manifest = read_manifest(self.output, self.kind)
        manifest["stats"].update(stats)
        atomic.write_bytes(self.manifest, _dump(manifest))
        return manifest

    # ---------------------------------------------------------------- files

    @property
    def _pending_manifest(self) -> Path:
        return atomic.partial_name(self.manifest)

    def journal(self, force: bool, say: Callable[[str], None]) -> Journal:
        """Where the pieces of a long work for this file are kept until it has its name (stdout:
        nowhere).

        It is in a partial folder, as for a folder artifact: what an interrupted call left
        is continued if that call was making the same, and `say` reports it; it is dropped with
        `force`; otherwise a `Mismatch`.
        """
        if self.output == STDIO:
            return Journal()
        folder = atomic.partial_name(self.output.with_name(f"{self.output.name}.journal"))

        def begin() -> Path:
            self._begin(folder, force)
            if (folder / RECORDS).exists():
                say(f"{self.output}: going on from what an interrupted call left")
            return folder

        return Journal(begin, self.output)

    @contextmanager
    def text_file(self, stats: dict[str, Any]) -> Iterator[IO[bytes]]:
        """Write the output file through the handle that this yields (`-` is stdout).

        When the block ends without an error the file takes its name, with a sidecar manifest that
        holds `stats` as the block left them; on an error nothing is left. The manifest is durable
        under a pending name before the content is renamed, so that a kill between the two renames
        is rolled forward by the next call instead of leaving a file without a manifest.
        """
        if self.output == STDIO:
            with open_output(self.output) as handle:
                yield handle
            return
        written = self.partial
        with atomic.disk_errors(self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(written, "wb") as raw:
                    with compressed(raw, self.output) as handle:
                        yield handle
                    raw.flush()
                    os.fsync(raw.fileno())
                files = {self.output.name: written.stat().st_size}
                content = {"files": files, "xxh3": hash_file(written)}
                with open(self._pending_manifest, "wb") as raw:
                    raw.write(_dump(self._manifest(content, stats)))
                    raw.flush()
                    os.fsync(raw.fileno())
                os.replace(written, self.output)
                os.replace(self._pending_manifest, self.manifest)
            except BaseException:
                written.unlink(missing_ok=True)
                raise
            atomic.sync_folder(self.output.parent)

    def _finish_interrupted_file(self) -> None:
        if self.kind in _FOLDERS or not self._pending_manifest.exists():
            return
        try:
            pending = read_record(self._pending_manifest, _PendingManifest)
            whole = hash_file(self.output) == pending.content.xxh3
        except BadInput:
            whole = False
        if whole:
            os.replace(self._pending_manifest, self.manifest)
        else:
            self._pending_manifest.unlink(missing_ok=True)

    def _manifest(self, content: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
        return {
            **self.identity,
            "fingerprint": self.fingerprint,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "tool_version": __version__,
            "ran_with": self.ran_with,
            "content": content,
            "stats": stats,
        }


def _dump(manifest: dict[str, Any]) -> bytes:
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def spare_inputs(output: Path, reads: Iterable[Path | str | None]) -> None:
    """Raise `UsageProblem` where an output is, or holds, something that is read to make it: with
    --force it would be gone for good."""
    place = output.resolve()
    for path in reads:
        if path is not None and Path(path).resolve().is_relative_to(place):
            raise UsageProblem(
                f"{output}: this command reads {path}, which it would replace",
                hint="choose another name with -o",
            )


def _is_hidden(place: Path) -> bool:
    return any(part.startswith(".") for part in place.parts)


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:12] + "..." + text[-4:]
