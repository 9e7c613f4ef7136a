"""An import in this process, and what it left."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from ance_cli.call import Call
from ance_cli.interop.import_dataset import import_dataset
from ance_cli.interop.recognition import Request
from tests.world import jsonl


class Imported:
    """A dataset folder, read back."""

    def __init__(self, folder: Path, summary: dict) -> None:
        self.folder, self.summary = folder, summary

    @property
    def corpus(self) -> dict[str, tuple[str, str]]:
        """doc_id -> (title, text)"""
        return {r["_id"]: (r["title"], r["text"]) for r in jsonl(self.folder / "corpus.jsonl")}

    @property
    def queries(self) -> dict[str, str]:
        return {r["_id"]: r["text"] for r in jsonl(self.folder / "queries.jsonl")}

    @property
    def records(self) -> list[dict]:
        return jsonl(self.folder / "queries.jsonl")

    def labels(self, split: str = "train") -> list[tuple[str, str, str]]:
        header, *lines = (self.folder / "qrels" / f"{split}.tsv").read_text().splitlines()
        assert header == "query-id\tcorpus-id\tscore"
        return [tuple(line.split("\t")) for line in lines]

    def negatives(self, split: str = "train") -> list[dict]:
        return jsonl(self.folder / "negatives" / f"{split}.jsonl")


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Imports sources (names in the scratch folder, which is the current one) into `out`."""
    monkeypatch.chdir(tmp_path)

    def run(*sources: object, skipped=None, output="out", force=False, **request) -> Imported:
        summary = import_dataset(
            Request([str(source) for source in sources], **request), Path(output),
            call=Call(force=force, skipped=skipped),
        )  # fmt: skip
        return Imported(Path(output), summary)

    return run


@pytest.fixture
def write(tmp_path):
    """Writes lines, or bytes as they are, under a name; compressed as the name says."""

    def run(name: str, *lines: str | bytes) -> Path:
        data = b"".join(
            line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines
        )
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".zst"):
            data = zstandard.compress(data)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return run
