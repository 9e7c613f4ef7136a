"""An import in this process, and what it left; embeddings that are exported."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from ance_cli.call import Call
from ance_cli.config import EncodeConfig, VectorStoreConfig
from ance_cli.encoding.encode import encode
from ance_cli.formats.dataset import locate
from ance_cli.interop.export_vectors import export_vectors
from ance_cli.interop.import_dataset import import_dataset
from ance_cli.interop.recognition import Request
from ance_cli.models.checkpoint import Checkpoint
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


@pytest.fixture
def world(tmp_path, dataset, spread_checkpoints, monkeypatch):
    """Embeds the corpus of a small dataset, and writes it to a vector database or a file."""
    monkeypatch.chdir(tmp_path)

    class World:
        def embed(self, similarity="dot", name="emb", dtype="float32", **settings):
            checkpoint = Checkpoint(spread_checkpoints[similarity])
            checkpoint = checkpoint.with_settings(**settings) if settings else checkpoint
            config = EncodeConfig(output_dtype=dtype, gpus="none")
            encode(checkpoint, locate(dataset), tmp_path / name, config)
            return checkpoint

        def write(self, form, url, name="emb", collection="docs", **call):
            return export_vectors(
                form, tmp_path / name, dataset / "corpus.jsonl",
                config=VectorStoreConfig(url=url, collection=collection), call=Call(**call),
            )  # fmt: skip

        def file(self, form, output, **settings):
            return export_vectors(
                form, tmp_path / "emb", dataset / "corpus.jsonl", tmp_path / output,
                VectorStoreConfig(**settings),
            )  # fmt: skip

    return World()
