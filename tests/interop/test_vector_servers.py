"""The requests to databases that need a server, which here is a small one of the test's own."""

import gzip
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from ance_cli.errors import Mismatch, ResourceExhausted, UsageProblem
from ance_cli.formats.embeddings import Embeddings
from ance_cli.interop.vector_stores import pgvector
from tests.loopback import listening


class Server:
    """Answers `(method, path, body)` of each request, which it notes, by `answer`."""

    def __init__(self):
        self.asked = []
        self.url = ""

    def answer(self, method, path, body):
        raise NotImplementedError


class Index(Server):
    """Of Elasticsearch and OpenSearch what an index takes: mapping, `_bulk`, `_count`."""

    def __init__(self):
        super().__init__()
        self.indexes, self.documents = {}, {}

    def answer(self, method, path, body):
        name, _, action = path.strip("/").partition("/")
        if "_bulk" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            for head, document in zip(lines[::2], lines[1::2], strict=True):
                self.documents[head["index"]["_id"]] = document
            items = [{"index": {**head["index"], "status": 200}} for head in lines[::2]]
            return 200, {"errors": False, "items": items}
        if method == "PUT":
            self.indexes[name] = json.loads(body)
            return 200, {"acknowledged": True}
        if name not in self.indexes:
            return 404, {"error": "index_not_found_exception", "status": 404}
        if method == "DELETE":
            del self.indexes[name]
            self.documents.clear()
        if action == "_mapping":
            return 200, {f"{name}-000001": {"mappings": self.indexes[name].get("mappings", {})}}
        return 200, {"count": len(self.documents)}


class Schema(Server):
    """Of Vespa the documents of one schema."""

    def __init__(self):
        super().__init__()
        self.documents, self.refused = {}, False

    def answer(self, method, path, body):
        if path.startswith("/search"):
            asked = json.loads(body)
            assert asked["yql"] == "select checkpoint from docs where true"
            found = [{"fields": {"checkpoint": each["checkpoint"]}}
                     for each in [*self.documents.values()][: asked["hits"]]]  # fmt: skip
            root = {"fields": {"totalCount": len(self.documents)}}
            return 200, {"root": {**root, "children": found} if found else root}
        if self.refused:
            return 400, {"message": "no field 'segment'"}
        name = unquote(path.removeprefix("/document/v1/docs/docs/docid/"))
        self.documents[name] = json.loads(body)["fields"]
        return 200, {"id": name}


@contextmanager
def running(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _handle(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            path = self.path.partition("?")[0]
            server.asked.append((self.command, path))
            code, reply = server.answer(self.command, path, body)
            data = json.dumps(reply).encode()
            self.send_response(code)
            self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    with listening(Handler) as server.url:
        yield server


def check_documents(documents, vectors_of):
    embeddings = Embeddings(Path("emb"))
    assert list(documents) == embeddings.ids
    vectors = np.array([vectors_of(each) for each in documents.values()], np.float32)
    assert np.array_equal(vectors, np.asarray(embeddings.vectors))
    assert {each["checkpoint"] for each in documents.values()} == {embeddings.tower}
    assert documents["d5"]["title"] == "comet 5" and documents["d5"]["segment"] == 0


VECTORS = {
    ("elasticsearch", "dot"): {"type": "dense_vector", "dims": 32,
                               "similarity": "max_inner_product"},
    ("elasticsearch", "cosine"): {"type": "dense_vector", "dims": 32, "similarity": "cosine"},
    ("opensearch", "dot"): {
        "type": "knn_vector", "dimension": 32,
        "method": {"name": "hnsw", "engine": "lucene", "space_type": "innerproduct"}},
    ("opensearch", "cosine"): {
        "type": "knn_vector", "dimension": 32,
        "method": {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}},
}  # fmt: skip


@pytest.mark.parametrize(("form", "similarity"), VECTORS)
def test_an_index_is_made_and_filled(world, form, similarity):
    pytest.importorskip("elasticsearch" if form == "elasticsearch" else "opensearchpy")
    world.embed(similarity)
    world.embed("cosine" if similarity == "dot" else "dot", "other")
    with running(Index()) as server:
        for _ in range(2):
            assert world.write(form, server.url)["points"] == 64
        assert [path for method, path in server.asked if method == "PUT"].count("/docs") == 1
        mapping = server.indexes["docs"]["mappings"]
        assert mapping["properties"]["vector"] == VECTORS[form, similarity]
        assert mapping["properties"]["doc_id"] == {"type": "keyword"}
        assert mapping["_meta"]["distance"] == similarity
        check_documents(server.documents, lambda each: each["vector"])
        with pytest.raises(Mismatch, match="do not belong to these: checkpoint"):
            world.write(form, server.url, "other")
        world.write(form, server.url, "other", force=True)
        assert server.indexes["docs"]["mappings"]["_meta"]["distance"] != similarity
        server.indexes["docs"] = {"mappings": {}}
        with pytest.raises(Mismatch, match="notes no checkpoint"):
            world.write(form, server.url, force=True)
    with pytest.raises(ResourceExhausted, match=f"{form}:docs: the database refused"):
        world.write(form, server.url)


def test_documents_of_a_vespa_schema(world):
    pytest.importorskip("vespa")
    world.embed()
    world.embed("cosine", "other")
    with running(Schema()) as server:
        for _ in range(2):
            assert world.write("vespa", server.url)["points"] == 64
        ordered = {name: server.documents[name] for name in Embeddings(Path("emb")).ids}
        check_documents(ordered, lambda each: each["vector"]["values"])
        assert ordered["d5"]["id"] == "d5" and len(server.documents) == 64
        with pytest.raises(Mismatch, match="do not belong to these: checkpoint"):
            world.write("vespa", server.url, "other")
        with pytest.raises(UsageProblem, match="--force cannot remove the documents"):
            world.write("vespa", server.url, "other", force=True)
        server.refused = True
        with pytest.raises(ResourceExhausted, match="refused 64 documents, the first one is d"):
            world.write("vespa", server.url)


class Postgres:
    """A connection that notes the statements and answers those that ask."""

    def __init__(self):
        self.statements, self.rows, self.comment, self.exists = [], {}, None, False

    def execute(self, query, values=()):
        text = query.as_string(None)
        self.statements.append(text)
        answer = None
        if text.startswith("CREATE TABLE"):
            self.exists = True
        if text.startswith("COMMENT"):
            self.comment = text.split(" IS ")[1].strip().strip("'")
        if text.startswith("DROP TABLE"):
            self.exists, self.comment, self.rows = False, None, {}
        if "to_regclass" in text:
            assert values == ('"my docs"', '"my docs"')
            answer = (self.exists, self.comment)
        if "count(*)" in text:
            answer = (len(self.rows),)
        return type("Found", (), {"fetchone": lambda _: answer})()

    @contextmanager
    def transaction(self):
        self.statements.append("BEGIN")
        yield
        self.statements.append("COMMIT")

    @contextmanager
    def cursor(self):
        yield self

    @contextmanager
    def copy(self, statement):
        self.statements.append(statement)
        yield self

    def write(self, data):
        for line in data.decode().splitlines():
            self.rows[line.split("\t")[0]] = line.split("\t")

    def close(self):
        self.statements.append("CLOSE")


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_table_of_pgvector(world, monkeypatch, similarity):
    psycopg = pytest.importorskip("psycopg")
    server = Postgres()
    monkeypatch.setattr(psycopg, "connect", lambda url, autocommit: server)
    world.embed(similarity)
    world.embed("cosine" if similarity == "dot" else "dot", "other")

    def write(name="emb", **call):
        return world.write("pgvector", "postgresql://here", name, "my docs", **call)

    assert write()["points"] == 64
    operators = {"dot": "vector_ip_ops", "cosine": "vector_cosine_ops"}[similarity]
    made = server.statements
    assert any('CREATE TABLE "my docs"' in each and "vector vector(32)" in each for each in made)
    assert f'CREATE INDEX ON "my docs" USING hnsw (vector "{operators}")' in made
    assert made[-1] == "CLOSE"
    begin = len(made) - made[::-1].index("BEGIN") - 1
    assert [each.split(" (")[0] for each in made[begin : begin + 5]] == [
        "BEGIN", "CREATE TEMP TABLE ance_points", "COPY ance_points",
        'INSERT INTO "my docs" SELECT * FROM ance_points ON CONFLICT', "COMMIT",
    ]  # fmt: skip
    embeddings = Embeddings(Path("emb"))
    vectors = [json.loads(server.rows[name][-1]) for name in embeddings.ids]
    assert np.array_equal(np.array(vectors, np.float32), np.asarray(embeddings.vectors))
    write()
    assert sum(each.startswith("CREATE TABLE") for each in made) == 1
    with pytest.raises(Mismatch, match="do not belong to these: checkpoint"):
        write("other")
    write("other", force=True)
    assert json.loads(server.comment)["checkpoint"] == Embeddings(Path("other")).tower
    server.comment = "a table of somebody else"
    with pytest.raises(Mismatch, match="notes no checkpoint"):
        write(force=True)


def test_wide_vectors_have_no_index_in_pgvector(monkeypatch):
    psycopg = pytest.importorskip("psycopg")
    server = Postgres()
    monkeypatch.setattr(psycopg, "connect", lambda url, autocommit: server)
    store = pgvector.PgVector("postgresql://here", "my docs")
    store.create({"checkpoint": "x", "dim": "2001", "distance": "dot"})
    assert not any("hnsw" in each for each in server.statements)
