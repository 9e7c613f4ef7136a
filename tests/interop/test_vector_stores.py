"""Embeddings in vector databases: the embedded ones as they are, the others by their requests."""

import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from ance_cli.config import ComputeConfig, VectorStoreConfig
from ance_cli.errors import BadInput, Mismatch, ResourceExhausted, UsageProblem
from ance_cli.formats.dataset import read_corpus
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.manifest import read_manifest
from ance_cli.interop import export_vectors as stage
from ance_cli.interop.export_vectors import export_vectors
from ance_cli.models.texts import TextEncoder
from ance_cli.progress import Silent
from ance_cli.retrieval.exact import exact_top_docs
from tests.world import jsonl, write_jsonl

QUESTIONS = ["river word3", "old bread", "violin word9", "comet"]
DEPTH = 10


def ours(checkpoint):
    """Query vectors, and for each question (doc_id, score) of the exact search."""
    queries = TextEncoder(checkpoint, "query", ComputeConfig()).queries(QUESTIONS, Silent())
    embeddings = Embeddings(Path("emb"))
    scores, docs = exact_top_docs(queries, embeddings, DEPTH)
    return queries, [
        [(embeddings.ids[doc], float(score)) for doc, score in zip(*row, strict=True)]
        for row in zip(docs.tolist(), scores, strict=True)
    ]


class OfQdrant:
    """How a program of somebody else opens and searches what was written."""

    url = "store"

    def __init__(self, url="store"):
        self.client = pytest.importorskip("qdrant_client").QdrantClient(path=url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def search(self, query, similarity):
        found = self.client.query_points("docs", query=query.tolist(), limit=DEPTH).points
        return [(point.payload["doc_id"], point.score) for point in found]

    def payload(self, doc_id):
        name = str(uuid.uuid5(uuid.NAMESPACE_URL, doc_id))
        (point,) = self.client.retrieve("docs", [name])
        return point.payload

    def checkpoint(self):
        return self.client.get_collection("docs").config.metadata["ance"]["checkpoint"]

    def foreign(self):
        models = pytest.importorskip("qdrant_client").models
        vectors = models.VectorParams(size=32, distance=models.Distance.DOT)
        self.client.create_collection("docs", vectors)


class OfLanceDb:
    url = "store"

    def __init__(self):
        self.db = pytest.importorskip("lancedb").connect(self.url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def search(self, query, similarity):
        """LanceDB's distance is one minus the similarity."""
        found = self.db.open_table("docs").search(query).distance_type(similarity).limit(DEPTH)
        return [(row["doc_id"], 1 - row["_distance"]) for row in found.to_list()]

    def payload(self, doc_id):
        (row,) = self.db.open_table("docs").search().where(f"doc_id = '{doc_id}'").to_list()
        return row

    def checkpoint(self):
        return self.db.open_table("docs").schema.metadata[b"ance.checkpoint"].decode()

    def foreign(self):
        self.db.create_table("docs", [{"id": "d0", "vector": [0.0] * 32}])


class OfMilvus:
    url = "store.db"

    def __init__(self):
        pytest.importorskip("milvus_lite")
        self.client = pytest.importorskip("pymilvus").MilvusClient(self.url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def search(self, query, similarity):
        (found,) = self.client.search("docs", [query], limit=DEPTH, output_fields=["doc_id"])
        return [(hit["entity"]["doc_id"], hit["distance"]) for hit in found]

    def payload(self, doc_id):
        (row,) = self.client.query("docs", filter=f"doc_id == '{doc_id}'")
        return row

    def checkpoint(self):
        return self.payload("d0")["checkpoint"]

    def foreign(self):
        self.client.create_collection("docs", dimension=32)


EMBEDDED = {"qdrant": OfQdrant, "lancedb": OfLanceDb, "milvus": OfMilvus}


@pytest.fixture(params=EMBEDDED)
def embedded(request, world):
    """(form, how others open it) of each embedded database that is installed."""
    kind = EMBEDDED[request.param]
    with kind():
        pass
    return request.param, kind


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_an_embedded_database_finds_what_the_exact_search_finds(
    world, embedded, dataset, similarity
):
    form, theirs = embedded
    checkpoint = world.embed(similarity)
    tower = checkpoint.tower_hash("passage")
    for _ in range(2):  # the second call writes the same points again
        found = world.write(form, theirs.url)
        assert found["points"] == 64 and found["distance"] == similarity
        assert found["checkpoint"] == tower
    queries, expected = ours(checkpoint)
    passages = {passage.doc_id: passage for passage in read_corpus(dataset / "corpus.jsonl")}
    with theirs() as store:
        for query, hits in zip(queries, expected, strict=True):
            got = store.search(query, similarity)
            assert [doc_id for doc_id, _ in got] == [doc_id for doc_id, _ in hits]
            length = np.linalg.norm(query) if similarity == "cosine" else 1
            scores = [score * length for _, score in got]
            np.testing.assert_allclose(scores, [score for _, score in hits], rtol=1e-4)
        payload = store.payload("d5")
        assert (payload["title"], payload["text"]) == passages["d5"][1:]
        assert (payload["doc_id"], payload["segment"]) == ("d5", 0)
        assert store.checkpoint() == tower


def test_vectors_that_do_not_belong_to_a_collection_are_refused(world, embedded, dataset):
    form, theirs = embedded
    world.embed()
    world.embed("cosine", "other")
    world.embed(name="cut", truncate_dim=16)
    world.write(form, theirs.url)
    for name, said in (("other", "distance dot -> cosine"), ("other", "checkpoint "),
                       ("cut", "dim 32 -> 16")):  # fmt: skip
        with pytest.raises(Mismatch, match=said) as caught:
            world.write(form, theirs.url, name)
        assert "--force" in caught.value.hint
    with theirs() as store:
        assert store.checkpoint() == Embeddings(Path("emb")).tower
    world.write(form, theirs.url, "other", force=True)
    with theirs() as store:
        assert store.checkpoint() == Embeddings(Path("other")).tower
    world.write(form, theirs.url, "other")


def test_a_collection_of_somebody_else_is_never_replaced(world, embedded):
    form, theirs = embedded
    world.embed()
    with theirs() as store:
        store.foreign()
    for force in (False, True):
        with pytest.raises(Mismatch, match=f"{form}:docs: exists and notes no checkpoint"):
            world.write(form, theirs.url, force=force)


def test_documents_that_are_left_over_are_reported(world, embedded, dataset):
    form, theirs = embedded
    world.embed()
    world.write(form, theirs.url)
    write_jsonl(dataset / "corpus.jsonl", jsonl(dataset / "corpus.jsonl")[:60])
    world.embed(name="fewer")
    with pytest.raises(Mismatch, match="holds 64 points after 60 were written"):
        world.write(form, theirs.url, "fewer")
    world.write(form, theirs.url, "fewer", force=True)


def test_a_call_that_was_stopped_is_done_again(world, embedded, monkeypatch):
    form, theirs = embedded
    world.embed()
    monkeypatch.setattr(stage, "_BATCH", 16)
    batches = stage._Points.batches

    def stopped(self, advance):
        for number, batch in enumerate(batches(self, advance)):
            if number == 2:
                raise BadInput("stopped")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(stage._Points, "batches", stopped)
        with pytest.raises((BadInput, ResourceExhausted)):
            world.write(form, theirs.url)
    assert world.write(form, theirs.url)["points"] == 64


def test_segments_are_points_of_their_own(world, embedded):
    """MaxP: the best segment of each document gives the documents of the exact search."""
    form, theirs = embedded
    checkpoint = world.embed(segmentation="special", passage_length=8, max_segments=3)
    embeddings = Embeddings(Path("emb"))
    assert world.write(form, theirs.url)["points"] == embeddings.num_rows > 64
    queries, expected = ours(checkpoint)
    with theirs() as store:
        for query, hits in zip(queries, expected, strict=True):
            best = {}
            for doc_id, score in store.search(query, "dot"):
                best.setdefault(doc_id, score)
            assert list(best) == [doc_id for doc_id, _ in hits][: len(best)]


# ---------------------------------------------------------------- files


@pytest.fixture
def points(world):
    """The ids, vectors and checkpoint of embeddings of segments."""
    world.embed(segmentation="special", passage_length=8, max_segments=3)
    embeddings = Embeddings(Path("emb"))
    counts = np.diff(embeddings.doc_offsets)
    ids = [
        f"{name}#{number}"
        for name, count in zip(embeddings.ids, counts, strict=True)
        for number in range(count)
    ]
    return ids, np.asarray(embeddings.vectors), embeddings.tower


@pytest.mark.parametrize("form", ["qdrant", "lancedb", "milvus"])
def test_a_parquet_file_has_points_and_vectors(world, points, form, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    ids, vectors, tower = points
    found = world.file(form, "points.parquet")
    assert found["points"] == len(ids) and found["kind"] == "export"
    table = pq.read_table(tmp_path / "points.parquet")
    named = [str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in ids] if form == "qdrant" else ids
    assert table["id"].to_pylist() == named
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)
    assert table["doc_id"].to_pylist() == [name.split("#")[0] for name in ids]
    assert set(table["checkpoint"].to_pylist()) == {tower}
    assert table.schema.metadata[b"ance.distance"] == b"dot"


@pytest.mark.parametrize("form", ["opensearch", "elasticsearch"])
def test_lines_for_bulk(world, points, form, tmp_path):
    ids, vectors, tower = points
    world.file(form, "points.ndjson.gz")
    import gzip

    lines = [json.loads(line) for line in gzip.open(tmp_path / "points.ndjson.gz")]
    assert [line["index"]["_id"] for line in lines[::2]] == ids
    assert np.array_equal(np.array([line["vector"] for line in lines[1::2]], np.float32), vectors)
    assert {line["checkpoint"] for line in lines[1::2]} == {tower}


def test_lines_for_vespa(world, points, tmp_path):
    ids, vectors, _ = points
    world.file("vespa", "points.jsonl", collection="docs")
    lines = jsonl(tmp_path / "points.jsonl")
    assert [line["put"] for line in lines] == [f"id:docs:docs::{name}" for name in ids]
    fields = [line["fields"] for line in lines]
    assert [each["id"] for each in fields] == ids
    values = np.array([each["vector"]["values"] for each in fields], np.float32)
    assert np.array_equal(values, vectors)


def test_lines_for_copy(world, dataset, tmp_path):
    """Read back by the rules of the text format: one row a line, with its own escapes."""
    records = jsonl(dataset / "corpus.jsonl")
    records[0] |= {"title": "a\\b\tc", "text": "one\ntwo\r\\."}
    write_jsonl(dataset / "corpus.jsonl", records)
    world.embed()
    world.file("pgvector", "points.tsv")
    rows = [line.split("\t") for line in (tmp_path / "points.tsv").read_text().splitlines()]
    assert len(rows) == 64 and {len(row) for row in rows} == {7}
    assert rows[0][3:5] == ["a\\\\b\\tc", "one\\ntwo\\r\\\\."]
    vectors = np.array([json.loads(row[-1]) for row in rows], np.float32)
    assert np.array_equal(vectors, np.asarray(Embeddings(Path("emb")).vectors))


# ---------------------------------------------------------------- what is refused


def test_rounded_vectors_and_another_corpus_are_refused(world, dataset):
    world.embed(name="int8", dtype="int8")
    with pytest.raises(Mismatch, match="a vector database needs them as the model made"):
        world.write("lancedb", "store", "int8")
    world.embed()
    records = jsonl(dataset / "corpus.jsonl")
    write_jsonl(dataset / "corpus.jsonl", [*records, {"_id": "new", "text": "river"}])
    with pytest.raises(Mismatch, match="of another corpus"):
        world.write("lancedb", "store")


@pytest.mark.parametrize(
    ("form", "output", "settings", "said"),
    [
        ("qdrant", None, {}, "exactly one of a file"),
        ("qdrant", "x.parquet", {"url": "u", "collection": "c"}, "exactly one of a file"),
        ("qdrant", None, {"url": "u"}, "--url needs --collection"),
        ("qdrant", "x.parquet", {"collection": "c"}, "--collection needs --url"),
        ("vespa", "x.jsonl", {}, "a feed of Vespa names its schema"),
        ("lancedb", "x.jsonl", {}, "lancedb loads Parquet"),
        ("lancedb", None, {"url": "emb/store", "collection": "c"}, "inside the embeddings folder"),
    ],
)
def test_impossible_places_are_refused(world, dataset, form, output, settings, said, tmp_path):
    world.embed()
    with pytest.raises(UsageProblem, match=said):
        export_vectors(
            form, tmp_path / "emb", dataset / "corpus.jsonl", output and tmp_path / output,
            VectorStoreConfig(**settings),
        )  # fmt: skip


@pytest.mark.parametrize("form", EMBEDDED)
def test_a_missing_client_is_named(world, monkeypatch, form):
    import sys

    world.embed()
    module = {"qdrant": "qdrant_client", "lancedb": "lancedb", "milvus": "pymilvus"}[form]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageProblem, match=f"writing to {form} needs its client {module}") as found:
        world.write(form, "store")
    assert f"pip install 'ance-cli[{form}]'" in found.value.hint


def test_a_dry_run_opens_no_database(world, tmp_path):
    world.embed()
    found = world.write("lancedb", "store", dry_run=True)
    assert found["dry_run"] and found["distance"] == "dot" and not (tmp_path / "store").exists()


def test_embeddings_of_before_name_no_similarity(world, tmp_path):
    world.embed("cosine")
    manifest = read_manifest(tmp_path / "emb", "embeddings")
    assert manifest["ran_with"].pop("similarity") == "cosine"
    (tmp_path / "emb" / "manifest.json").write_text(json.dumps(manifest))
    assert world.write("lancedb", "store", dry_run=True)["distance"] == "dot"
