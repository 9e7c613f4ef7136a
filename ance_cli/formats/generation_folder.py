"""The names of the parts of a generation: what one refresh makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.errors import AnceError
from ance_cli.formats import atomic
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.manifest import check_files, manifest_name, read_manifest
from ance_cli.formats.negatives_file import audit_name

LARGE = ("embeddings", "index", "candidates")
"""The parts that are removed from older generations; negatives, audit, dev measures and manifests
stay."""


@dataclass(frozen=True)
class GenerationFolder:
    """The paths of the parts of one generation, which need not exist."""

    path: Path

    @property
    def number(self) -> int:
        """The folder's number within the run."""
        return int(self.path.name)

    @property
    def partial(self) -> GenerationFolder:
        """The folder in which the generation is made."""
        return GenerationFolder(atomic.partial_name(self.path))

    @property
    def embeddings(self) -> Path:
        """The vectors of the corpus."""
        return self.path / "embeddings"

    @property
    def index(self) -> Path:
        """The index over the vectors, if the run searches one."""
        return self.path / "index"

    @property
    def candidates(self) -> Path:
        """The ranked documents of each query."""
        return self.path / "candidates"

    @property
    def large_parts(self) -> tuple[Path, ...]:
        """The parts in `LARGE`."""
        return tuple(self.path / name for name in LARGE)

    @property
    def negatives(self) -> Path:
        return self.path / "negatives.jsonl"

    @property
    def negatives_manifest(self) -> Path:
        return manifest_name(self.negatives, "negatives")

    @property
    def audit(self) -> Path:
        """The audit of the negatives."""
        return audit_name(self.negatives)

    @property
    def dev(self) -> Path:
        """The mean and interval of each dev measure."""
        return self.path / "dev.json"

    @property
    def dev_run(self) -> Path:
        """The ranking of the dev queries, in TREC's format."""
        return self.path / "dev.trec"

    @property
    def guard(self) -> Path:
        """As `dev`, on the guard; from the second generation on with tests against the start."""
        return self.path / "guard.json"

    @property
    def guard_run(self) -> Path:
        """The ranking of the guard's queries."""
        return self.path / "guard.trec"

    @property
    def guard_embeddings(self) -> Path:
        """The vectors of the guard's corpus, which exist only until its queries are ranked."""
        return self.path / "guard-embeddings"

    @property
    def probe(self) -> Path:
        """The positions of the probe's queries and passages, and each query's best passages."""
        return self.path / "probe.json"

    @property
    def manifest(self) -> Path:
        return manifest_name(self.path, "generation")

    @property
    def is_readable(self) -> bool:
        """Whether it has its manifest."""
        try:
            self.read_manifest()
        except AnceError:
            return False
        return True

    def whole_step(self) -> int | None:
        """The step of the checkpoint that it is from; None if its manifest or negatives are damaged
        or missing."""
        try:
            stats = self.read_manifest()["stats"]
            if not is_unchanged(self.negatives, "negatives", self.negatives):
                return None
        except AnceError:
            return None
        return int(stats["checkpoint_step"])

    def read_manifest(self) -> dict[str, Any]:
        """The manifest; errors are those of `manifest.read_manifest`."""
        return read_manifest(self.path, "generation")


def is_unchanged(part: Path, kind: str, file: Path | None = None) -> bool:
    """Whether a part of a generation has the hashes in its manifest: of `file`, if given, and of a
    folder's files."""
    try:
        manifest = read_manifest(part, kind)
        check_files(part, manifest, None)
        return file is None or bool(manifest["content"]["xxh3"] == hash_file(file))
    except AnceError:
        return False
