"""pgvector: a table in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from ance_cli.interop.vector_stores.store import Batch, Facts, Point, Vector, client

_OPERATORS = {"dot": "vector_ip_ops", "cosine": "vector_cosine_ops"}
_MOST_INDEXED = 2000
"""Dimensions that an HNSW index of pgvector takes at most."""
_COLUMNS = (*Point._fields, "vector")
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_line(point: Point, vector: Vector) -> bytes:
    """A row in the text format of COPY."""
    texts = [str(value).translate(_ESCAPED) for value in point]
    numbers = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
    return "\t".join(texts).encode() + b"\t" + numbers + b"\n"


class PgVector:
    """A table with an HNSW index for its distance; its facts are its comment."""

    def __init__(self, url: str, name: str) -> None:
        self._connection = client("psycopg", "pgvector").connect(url, autocommit=True)
        self._sql, self._name = client("psycopg.sql", "pgvector"), name

    def _run(self, query: str, *values: object, **names: object) -> Any:
        """Execute a query in which `{table}` and the names stand for identifiers or literals."""
        table = self._sql.Identifier(self._name)
        return self._connection.execute(self._sql.SQL(query).format(table=table, **names), values)

    def facts(self) -> Facts | None:
        quoted = self._sql.Identifier(self._name).as_string(None)
        exists, comment = self._run(
            "SELECT to_regclass(%s) IS NOT NULL, obj_description(to_regclass(%s), 'pg_class')",
            quoted, quoted,
        ).fetchone()  # fmt: skip
        if not exists:
            return None
        return dict(json.loads(comment)) if (comment or "").startswith("{") else {}

    def create(self, facts: Facts) -> None:
        sql = self._sql
        dim = int(facts["dim"])
        with self._connection.transaction():
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
            self._run(
                "CREATE TABLE {table} (id text PRIMARY KEY, doc_id text, segment integer, "
                "title text, text text, checkpoint text, vector vector({dim}))",
                dim=sql.Literal(dim),
            )
            self._run("COMMENT ON TABLE {table} IS {facts}", facts=sql.Literal(json.dumps(facts)))
            if dim <= _MOST_INDEXED:
                operators = sql.Identifier(_OPERATORS[facts["distance"]])
                self._run("CREATE INDEX ON {table} USING hnsw (vector {how})", how=operators)

    def drop(self) -> None:
        self._run("DROP TABLE {table}")

    def upsert(self, batches: Iterator[Batch]) -> None:
        """Write all points in one transaction."""
        changed = ", ".join(f"{name} = EXCLUDED.{name}" for name in _COLUMNS[1:])
        with self._connection.transaction(), self._connection.cursor() as cursor:
            self._run("CREATE TEMP TABLE ance_points (LIKE {table}) ON COMMIT DROP")
            with cursor.copy(f"COPY ance_points ({', '.join(_COLUMNS)}) FROM STDIN") as copy:
                for batch in batches:
                    copy.write(b"".join(copy_line(*row) for row in batch.rows()))
            self._run(
                "INSERT INTO {table} SELECT * FROM ance_points "
                f"ON CONFLICT (id) DO UPDATE SET {changed}"
            )

    def count(self) -> int:
        return int(self._run("SELECT count(*) FROM {table}").fetchone()[0])

    def close(self) -> None:
        self._connection.close()
