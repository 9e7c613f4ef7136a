"""Plans: an artifact to be made, whether it is there already, and how it takes its name.

A folder is built under a partial name and renamed with its manifest inside; the partial folder
holds `plan.json`, by which an interrupted call is continued. A file is renamed before its manifest,
which is durable by then under a pending name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import orjson

from ance_cli import __version__
from ance_cli.call import trusts_remote_code
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file, hash_json, hash_new_file
from ance_cli.formats.journal import RECORDS, Journal
from ance_cli.formats.jsonl import compressed, is_stream, open_output
from ance_cli.formats.lease import busy, lease_name, look
from ance_cli.formats.manifest import (
    ALGORITHM_VERSIONS,
    FOLDERS,
    FORMAT_VERSION,
    MANIFEST,
    Content,
    HashedContent,
    check_files,
    manifest_name,
    read_manifest,
)
from ance_cli.formats.records import read_record

PLAN = "plan.json"
AUTO = "auto"
"""A setting that agrees with whatever was chosen when the artifact was made."""

_HASHED = {
    "candidates": ("*.npy", "query_ids.txt", "positive_scores.jsonl"),
    "bm25-index": ("*",),
    "index": ("docid",),
    "tokens": ("doc_offsets.npy",),
    "generation": ("probe.json", "dev.json", "guard.json", "negatives.audit.json"),
}
"""The files of a folder that its manifest has a hash for, by kind. The others have hashes in their
own part of `content` (blocks of vectors and tokens), or sidecars."""


@dataclass
class _AnyManifest:
    kind: str


@dataclass
class _Listing:
    content: Content


@dataclass
class _PendingManifest:
    content: HashedContent


_REPLACE = "choose another name with -o, or replace the output with --force"
_AGAIN = "make it again with --force instead of --append, or choose another name with -o"
KEEP = "choose another name with -o, or remove it first if you do not need it; --force does not"
"""The hint for an output that ance did not make, which it never replaces."""


_MAKE_AGAIN = {"candidates": "mine again with --force"}
"""What to do about a folder that was changed, where -o does not name it."""


@dataclass
class Plan:
    """An artifact to be made: its path, the settings that shape it, and its inputs."""

    kind: str
    output: Path
    shaped_by: dict[str, Any]
    inputs: dict[str, str]
    ran_with: dict[str, Any] = field(default_factory=dict)
    reads: Sequence[Path | str | None] = ()
    """Files and folders that are read to make the artifact, which may not replace them."""
    outdated_by: Sequence[str] = ()
    """Inputs that may have changed since an existing output was made: --append deals with that."""
    append: bool = False
    """Whether such an output is brought up to date, instead of being refused."""

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
        """The path under which the artifact is built."""
        return atomic.partial_name(self.place)

    @property
    def place(self) -> Path:
        """Where the output's data lies, or will lie: the target of a link."""
        return atomic.place_of(self.output)

    # ---------------------------------------------------------------- is the output up to date?

    def published(self, force: bool = False) -> dict[str, Any] | None:
        """The manifest of the output if it is up to date; None if the output has to be made, or to
        be brought up to date.

        Raises `Mismatch` if the output was made with other settings (the message names them) or not
        by ance, or was changed; with `force` the result is None instead, unless ance did not make
        the output. Raises `UsageProblem` if the output would replace one of its inputs,
        and `Busy` if another process is about to finish it.
        """
        if is_stream(self.output) and self.kind not in FOLDERS:
            return None
        spare_inputs(self.output, self.reads)
        self._finish_interrupted_file()
        if not self.exists:
            return None
        self._check_made_by_ance()
        if force:
            self._check_no_file_of_others()
            return None
        found = read_manifest(self.output, self.kind)
        differing, fatal = self._differences(found), self._differences(found, self.outdated_by)
        if fatal or (differing and not self.append):
            raise Mismatch(
                f"{self.output}: exists with other settings: {'; '.join(differing)}",
                hint=self._replace if fatal else f"bring it up to date with --append, {_REPLACE}",
            )
        self._check_unchanged(found)
        self._finish_interrupted_folder(found)
        return None if differing else found

    def cached(self, warn: Callable[[str], None] | None = None) -> dict[str, Any] | None:
        """The manifest of an artifact in a cache; None if it has to be made, or made again because
        it is damaged (`warn` reports that)."""
        try:
            return self.published()
        except (BadInput, Mismatch) as problem:
            if warn:
                warn(f"{problem.what}; making it again")
            return None

    @property
    def exists(self) -> bool:
        """Whether there is something under the output's name; an empty folder is nothing."""
        is_folder = self.kind in FOLDERS and self.output.is_dir()
        return self.output.exists() and not (is_folder and not any(self.output.iterdir()))

    @property
    def _replace(self) -> str:
        return _AGAIN if self.append else _REPLACE

    def _check_made_by_ance(self) -> None:
        if self.kind not in FOLDERS and self.output.is_dir():
            raise Mismatch(
                f"{self.output}: is a folder, expected a file ({self.kind})",
                hint="name a file with -o",
            )
        if self.kind in FOLDERS and not self.output.is_dir():
            raise Mismatch(
                f"{self.output}: is no folder, expected a folder ({self.kind})",
                hint="name a new folder with -o",
            )
        if not self.manifest.exists():
            raise Mismatch(
                f"{self.output}: exists and has no manifest, so ance may not have made it",
                hint=KEEP,
            )
        try:
            kind = read_record(self.manifest, _AnyManifest).kind
        except BadInput as error:
            raise BadInput(error.what, hint=KEEP) from None
        if kind not in ALGORITHM_VERSIONS:
            raise Mismatch(
                f"{self.manifest}: is not a manifest of ance, so ance may not have made "
                f"{self.output}",
                hint=KEEP,
            )

    def _check_no_file_of_others(self) -> None:
        """Raise `Mismatch` if a folder of ours holds a file that is not a part of it.

        A call that was stopped right after its folder was published left files that no manifest
        lists: its plan tells.
        """
        if self.kind not in FOLDERS or (self.output / PLAN).exists():
            return
        try:
            listed = read_record(self.manifest, _Listing).content.files
        except BadInput:  # a damaged manifest does not tell
            return
        names = {
            path.relative_to(self.output).as_posix()
            for path in self.output.rglob("*")
            if not path.is_dir() and not _LEFT_BY_PROCESSES.search(path.name)
        }
        if others := sorted(names - {*listed, MANIFEST}):
            what = (
                f"{len(others)} files that are not a part of it, for instance {others[0]}"
                if others[1:]
                else f"1 file that is not a part of it: {others[0]}"
            )
            raise Mismatch(
                f"{self.output}: --force would also remove {what}",
                hint="move them elsewhere, or choose another name with -o",
            )

    def _check_unchanged(self, found: dict[str, Any]) -> None:
        """Compare the output's files with the sizes and hashes in its manifest."""
        for name, size in found["content"]["files"].items():
            path = self.output / name if self.kind in FOLDERS else self.output
            if not path.exists() or path.stat().st_size != size:
                raise Mismatch(f"{path}: was changed after ance wrote it", hint=self._replace)
        if self.kind in FOLDERS:
            check_files(self.output, found, _MAKE_AGAIN.get(self.kind, self._replace))
        elif found["content"].get("xxh3") not in (None, hash_file(self.output)):
            raise BadInput(
                f"{self.output}: differs from its manifest: the file was changed after it was made",
                hint=_REPLACE,
            )

    def _differences(self, found: dict[str, Any], apart_from: Sequence[str] = ()) -> list[str]:
        differing = []
        for name in ("format_version", "algorithm_version"):
            if found.get(name) != self.identity[name]:
                differing.append(f"{name} {found.get(name)} -> {self.identity[name]}")
        for part in ("shaped_by", "inputs"):
            old, new = found.get(part, {}), self.identity[part]
            for name in sorted({*old, *new} - {*apart_from}):
                if old.get(name) != new.get(name) and new.get(name) != AUTO:
                    differing.append(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}")
        return differing

    # ---------------------------------------------------------------- folders

    def open_partial(self, force: bool = False, abandon_other: bool = False) -> Path:
        """The folder to build in; an interrupted call with the same settings is continued.

        An interrupted call with other settings is a `Mismatch`, because its folder may contain
        hours of work; with `abandon_other` its folder is removed. `force` always starts again.
        """
        self._begin(self.partial, force, abandon_other)
        return self.partial

    def _begin(self, folder: Path, force: bool, abandon_other: bool = False) -> None:
        """Make the partial folder and its plan, or check that an existing one can be continued."""
        if force or not (folder / PLAN).exists() or _has_links(folder):
            atomic.remove(folder)
        if folder.exists():
            try:
                other = read_record(folder / PLAN, dict[str, Any])
            except BadInput:
                other = {}
            if differing := self._differences(other):
                if not abandon_other:
                    raise Mismatch(
                        f"{folder}: exists as an unfinished {self.kind} with other settings: "
                        f"{'; '.join(differing)}",
                        hint="finish it with its own settings, or discard it with --force",
                    )
                atomic.remove(folder)
        with atomic.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PLAN).exists():
            atomic.write_bytes(folder / PLAN, orjson.dumps(self.identity))

    @contextmanager
    def new_partial(self) -> Iterator[Path]:
        """Yield an empty folder to build in, for work that cannot be continued.

        If the block fails, the folder is removed.
        """
        folder = self.open_partial(force=True)
        try:
            with atomic.disk_errors(self.output):
                yield folder
        except BaseException:
            atomic.remove(folder)
            raise

    def publish_folder(
        self, content: dict[str, Any], stats: dict[str, Any], unfinished_only: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write the manifest and rename the partial folder; returns the manifest.

        `unfinished_only` names files that are only needed to continue the work. They and the plan
        are removed after the rename, so that a full disk loses no work. Names that begin with a dot
        are not part of an artifact: they are leases that killed readers left in the folder.
        """
        folder = self.partial
        dropped = {folder / name for name in (PLAN, MANIFEST, *unfinished_only)}
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path not in dropped and not _is_hidden(path.relative_to(folder))
        }
        hashes = {name: hash_new_file(folder / name) for name in files if self._hashes(name)}
        known = {"files_xxh3": hashes} if hashes else {}
        manifest = self._manifest({**content, "files": files, **known}, stats)
        with atomic.disk_errors(self.output):
            atomic.sync_tree(folder)
            (folder / MANIFEST).write_bytes(_dump(manifest))
        atomic.publish_folder(folder, self.place)
        self._tidy(unfinished_only)
        return manifest

    def _hashes(self, name: str) -> bool:
        """Whether the manifest has the hash of this file of a folder."""
        return any(fnmatchcase(name, pattern) for pattern in _HASHED.get(self.kind, ()))

    def _tidy(self, unfinished_only: Iterable[str]) -> None:
        """Remove the files of an unfinished folder; the plan last, as a mark of unfinished work."""
        for name in (*unfinished_only, PLAN):
            (self.output / name).unlink(missing_ok=True)

    def _finish_interrupted_folder(self, found: dict[str, Any]) -> None:
        """Finish a call that was stopped after the rename and before `_tidy` was done."""
        if self.kind not in FOLDERS or not (self.output / PLAN).exists():
            return
        parts = {*found["content"]["files"], MANIFEST, PLAN}
        with suppress(PermissionError):  # another user's folder: their next call tidies it
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
        """A journal for the results of this file until it is written; for a stream, an empty one.

        The journal is in a partial folder. Like `open_partial`, it continues an interrupted call
        with the same settings (`say` reports that), raises `Mismatch` if the call had other
        settings, and starts again with `force`.
        """
        if is_stream(self.output):
            return Journal()
        folder = atomic.partial_name(atomic.companion(self.output, "{}.journal"))

        def begin() -> Path:
            self._begin(folder, force)
            if (folder / RECORDS).exists():
                say(f"{self.output}: continuing an interrupted call")
            return folder

        return Journal(begin, self.output)

    @contextmanager
    def text_file(self, stats: dict[str, Any]) -> Iterator[IO[bytes]]:
        """Yield a handle that writes the output file (`-` is stdout; a device is written into).

        If the block ends without an error, the file is renamed to its final name and its manifest
        is written, with `stats` as the block left them; on an error nothing remains. The manifest
        is durable under a pending name before the file is renamed, so that the next call finishes
        what a kill between the two renames interrupted.
        """
        if is_stream(self.output):
            with open_output(self.output) as handle:
                yield handle
            return
        place, written = self.place, self.partial
        with atomic.disk_errors(self.output):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with atomic.open_partial_file(written) as raw:
                    with compressed(raw, self.output) as handle:
                        yield handle
                    raw.flush()
                    os.fsync(raw.fileno())
                files = {self.output.name: written.stat().st_size}
                content = {"files": files, "xxh3": hash_new_file(written)}
                with atomic.open_partial_file(self._pending_manifest) as raw:
                    raw.write(_dump(self._manifest(content, stats)))
                    raw.flush()
                    os.fsync(raw.fileno())
                os.replace(written, place)
                os.replace(self._pending_manifest, self.manifest)
            except BaseException:
                written.unlink(missing_ok=True)
                raise
            atomic.sync_folder(place.parent)

    def _finish_interrupted_file(self) -> None:
        if self.kind in FOLDERS or not self._pending_manifest.exists():
            return
        name = lease_name(self.output)
        holder = look(name)
        if holder is not None and holder.alive and not holder.is_this_process:
            raise busy(name, str(self.output))  # it may be between its two renames
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
            "ran_with": self.ran_with
            | ({"trust_remote_code": True} if trusts_remote_code() else {}),
            "content": content,
            "stats": stats,
        }


def _dump(manifest: dict[str, Any]) -> bytes:
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def spare_inputs(output: Path, reads: Iterable[Path | str | None]) -> None:
    """Raise `UsageProblem` if an output cannot be written under its name.

    With --force an input that the output is, or contains, would be lost. The working folder cannot
    be replaced: this process and the caller's shell are in it.
    """
    if len(os.fsencode(output.name)) > atomic.LONGEST_NAME:
        raise atomic.name_too_long(output)
    place = Path(os.path.realpath(output))
    for path in reads:
        if path is not None and Path(path).resolve().is_relative_to(place):
            raise UsageProblem(
                f"{output}: would replace {path}, which this command reads",
                hint="choose another name with -o",
            )
    if Path(os.getcwd()).is_relative_to(place):
        raise UsageProblem(
            f"{output}: the working folder is this folder or inside it, so it cannot be the output",
            hint="name a new folder or file with -o",
        )


def _has_links(folder: Path) -> bool:
    """Whether a partial folder is, or holds, a symbolic link: ance makes none there."""
    return folder.is_symlink() or any(path.is_symlink() for path in folder.rglob("*"))


_LEFT_BY_PROCESSES = re.compile(r"^\..*\.(lease|partial|removed|reader-[0-9a-f]+)$")
"""Names that processes of ours leave in a folder when they are killed."""


def _is_hidden(place: Path) -> bool:
    return any(part.startswith(".") for part in place.parts)


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:12] + "..." + text[-4:]
