"""`ance export` of embeddings: into a vector database, or to a file that it loads."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import VectorStoreConfig
from ance_cli.config.setting import check
from ance_cli.errors import AnceError, Mismatch, ResourceExhausted
from ance_cli.formats import lease
from ance_cli.formats.dataset import read_corpus
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.interop import (
    ELASTICSEARCH,
    LANCEDB,
    MILVUS,
    OPENSEARCH,
    PGVECTOR,
    QDRANT,
    VESPA,
    arrow,
)
from ance_cli.interop.vector_stores import elastic, lancedb, milvus, pgvector, qdrant, table, vespa
from ance_cli.interop.vector_stores.store import Batch, Facts, Point, Store
from ance_cli.retrieval.dense import VectorSource

_BATCH = 256
"""Points of a request: 4,096 dimensions as JSON stay below the 32 MB that servers accept."""

_STORES: dict[str, Callable[[str, str], Store]] = {
    QDRANT: qdrant.Qdrant,
    MILVUS: milvus.Milvus,
    LANCEDB: lancedb.LanceDb,
    PGVECTOR: pgvector.PgVector,
    OPENSEARCH: elastic.OpenSearch,
    ELASTICSEARCH: elastic.Elasticsearch,
    VESPA: vespa.Vespa,
}
_PARQUET = (QDRANT, MILVUS, LANCEDB)


def export_vectors(
    form: str,
    folder: Path,
    corpus: Path,
    output: Path | None = None,
    config: VectorStoreConfig = VectorStoreConfig(),
    call: Call = Call(),
) -> Summary:
    """Write embeddings with the titles and texts of their corpus, in one of `VECTOR_FORMS`.

    The rows become points of the collection `config.collection` at `config.url`, or of the file
    `output` that the database loads: Parquet, lines for COPY, for `_bulk` or for `vespa feed`. A
    collection notes the checkpoint, the dimension and the distance of its vectors. Writing again
    replaces the points with the same ids.

    Raises `Mismatch` if the embeddings are of another corpus or were rounded, and if the collection
    notes something else (with `call.force` it is replaced), was not made by ance, or holds other
    points afterwards; `ResourceExhausted` if the database refuses.
    """
    _check(form, output, config)
    source = VectorSource(folder, "embeddings")
    source.need_floats("a vector database")
    source.check_corpus(hash_file(corpus))
    points = _Points(Embeddings(folder), corpus, call.skipped)
    if output is None:
        return _upsert(form, points, config, call)
    plan = Plan(
        "export", output, {"form": form, "collection": config.collection},
        {"embeddings": source.fingerprint, "corpus": hash_file(corpus)},
        {"embeddings": str(folder)}, reads=[folder, corpus],
    )  # fmt: skip
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.reading(folder), lease.of_output(output), plan.text_file(points.figures) as handle:
        _write(handle, form, points, output, config.collection or "", call)
    return made(plan, points.figures)


def _check(form: str, output: Path | None, config: VectorStoreConfig) -> None:
    check(
        (output is None) != (config.url is None),
        f"{form} is written to exactly one of a file (-o) and a database (--url)",
        hint="ance export --help",
    )
    if config.url is not None:
        check(config.collection is not None, "--url needs --collection NAME")
        return
    assert output is not None
    check(
        (config.collection is None) or form == VESPA,
        "--collection needs --url: a file is loaded into a collection of any name",
    )
    check(
        (config.collection is not None) or form != VESPA,
        "a feed of Vespa names its schema",
        hint="name it with --collection",
    )
    if form in _PARQUET:
        check(
            arrow.is_parquet(output), f"{form} loads Parquet", hint="name a .parquet file with -o"
        )
        arrow.check_output(output)


class _Points:
    """The rows of some embeddings as points."""

    def __init__(self, embeddings: Embeddings, corpus: Path, skipped: SkippedLines | None) -> None:
        self.embeddings = embeddings
        self._corpus, self._skipped = corpus, skipped
        self.facts: Facts = {
            "checkpoint": embeddings.tower,
            "dim": str(embeddings.dim),
            # earlier versions did not note it: vectors of cosine have length one, where dot is
            # the same
            "distance": embeddings.manifest["ran_with"].get("similarity", "dot"),
        }

    @property
    def figures(self) -> dict[str, object]:
        counts = {"docs": self.embeddings.num_docs, "points": self.embeddings.num_rows}
        return {**counts, **self.facts, "dim": self.embeddings.dim}

    def batches(self, advance: Callable[[int], None]) -> Iterator[Batch]:
        """Yield all points in the order of the corpus; `advance` is called with their numbers."""
        offsets, doc_of_row = self.embeddings.doc_offsets, self.embeddings.doc_of_row()
        passages = enumerate(read_corpus(self._corpus, self._skipped))
        doc, passage = next(passages)
        for first, vectors in self.embeddings.blocks():
            for start in range(0, len(vectors), _BATCH):
                part = np.asarray(vectors[start : start + _BATCH], np.float32)
                row = first + start
                points: list[Point] = []
                for wanted in doc_of_row[row : row + len(part)].tolist():
                    while doc < wanted:
                        doc, passage = next(passages)
                    segment = row + len(points) - int(offsets[doc])
                    points.append(self._point(passage.doc_id, segment, passage.title, passage.text))
                yield Batch(points, part)
                advance(len(part))

    def _point(self, doc_id: str, segment: int, title: str, text: str) -> Point:
        is_whole = self.embeddings.num_rows == self.embeddings.num_docs
        name = doc_id if is_whole else f"{doc_id}#{segment}"
        return Point(name, doc_id, segment, title, text, self.facts["checkpoint"])


# ------------------------------------------------------------------ into a database


def _upsert(form: str, points: _Points, config: VectorStoreConfig, call: Call) -> Summary:
    url, name = str(config.url), str(config.collection)
    shown = f"{form}:{name}"
    folder = points.embeddings.folder
    check(
        "://" in url or not Path(url).resolve().is_relative_to(folder.resolve()),
        f"--url {url} is inside the embeddings folder, which this command reads",
    )
    if call.dry_run:
        return planned("collection", Path(shown), points.facts)
    rows = points.embeddings.num_rows
    with (
        lease.reading(folder),
        _refusals(shown),
        closing(_STORES[form](url, name)) as store,
    ):
        _prepare(store, points.facts, shown, call.force)
        with call.reporter.task("writing", rows, "row") as bar:
            store.upsert(points.batches(bar.advance))
        if (count := store.count()) != rows:
            raise Mismatch(
                f"{shown}: holds {count} points after {rows} were written: the others are of "
                "documents that the embeddings do not have",
                hint="replace the collection with --force, or name another --collection",
            )
    return {"output": shown, "kind": "collection", "up_to_date": False, **points.figures}


def _prepare(store: Store, facts: Facts, shown: str, force: bool) -> None:
    """Make the collection, or check that its vectors belong to the new ones."""
    found = store.facts()
    if found is not None:
        if not found.get("checkpoint"):
            raise Mismatch(
                f"{shown}: exists and notes no checkpoint, so ance may not have made it",
                hint="name another --collection, or remove it first if you do not need it; --force "
                "does not",
            )
        differing = [name for name, value in found.items() if value != facts[name]]
        if differing and not force:
            listed = "; ".join(f"{name} {found[name]} -> {facts[name]}" for name in differing)
            raise Mismatch(
                f"{shown}: holds vectors that do not belong to these: {listed}",
                hint="name another --collection, or replace this one with --force",
            )
        if not force:
            return
        store.drop()
    store.create(facts)


@contextmanager
def _refusals(shown: str) -> Iterator[None]:
    """Turn an error of a client into one that names the collection: they share no class."""
    try:
        yield
    except AnceError:
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise ResourceExhausted(
            f"{shown}: the database refused ({reason})",
            hint="check --url and that the database runs; then the same command writes again",
        ) from error


# ------------------------------------------------------------------ to a file


def _write(
    handle: IO[bytes], form: str, points: _Points, output: Path, name: str, call: Call
) -> None:
    with call.reporter.task("writing", points.embeddings.num_rows, "row") as bar:
        batches = points.batches(bar.advance)
        if form in _PARQUET:
            schema = table.schema(points.facts, fixed=form != MILVUS)
            named = map(_with_uuids, batches) if form == QDRANT else batches
            parts = (table.record_batch(batch, schema) for batch in named)
            arrow.write(handle, parts, schema, output)
            return
        for batch in batches:
            for point, vector in batch.rows():
                if form == PGVECTOR:
                    handle.write(pgvector.copy_line(point, vector))
                elif form == VESPA:
                    handle.write(_line(vespa.feed_record(point, vector, name)))
                else:
                    handle.write(_line({"index": {"_id": point.id}}))
                    handle.write(_line(elastic.source(point, vector)))


def _with_uuids(batch: Batch) -> Batch:
    named = [point._replace(id=qdrant.point_id(point.id)) for point in batch.points]
    return Batch(named, batch.vectors)


def _line(record: object) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
