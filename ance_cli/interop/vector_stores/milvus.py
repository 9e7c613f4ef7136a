"""Milvus: a server, or Milvus Lite in a file that ends in .db."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ance_cli.interop.vector_stores.store import Batch, Facts, Point, client

_METRICS = {"dot": "IP", "cosine": "COSINE"}
_LONGEST = 65_535
"""Bytes of a VARCHAR."""


class Milvus:
    """A collection. Milvus Lite keeps no properties, so each point names its checkpoint."""

    def __init__(self, url: str, name: str) -> None:
        self._module, self._name = client("pymilvus", "milvus"), name
        token = os.environ.get("MILVUS_TOKEN", "")
        self._client = self._module.MilvusClient(url, token=token)
        self._index = "AUTOINDEX" if "://" in url else "FLAT"

    def facts(self) -> Facts | None:
        if not self._client.has_collection(self._name):
            return None
        fields = self._client.describe_collection(self._name)["fields"]
        names = {field["name"]: field for field in fields}
        if not {"checkpoint", "vector"} <= set(names):
            return {}
        rows = self._client.query(self._name, output_fields=["checkpoint"], limit=1)
        metric = self._client.describe_index(self._name, "vector")["metric_type"]
        if not rows:
            return None
        return {
            "checkpoint": rows[0]["checkpoint"],
            "dim": str(names["vector"]["params"]["dim"]),
            "distance": next(name for name, value in _METRICS.items() if value == metric),
        }

    def create(self, facts: Facts) -> None:
        self.drop()  # an empty collection, which a call that was stopped has left
        types = self._module.DataType
        schema = self._module.MilvusClient.create_schema(auto_id=False)
        for name in Point._fields:
            if name == "segment":
                schema.add_field(name, types.INT32)
            else:
                schema.add_field(name, types.VARCHAR, is_primary=name == "id", max_length=_LONGEST)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=int(facts["dim"]))
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=self._index, metric_type=_METRICS[facts["distance"]])
        self._client.create_collection(
            self._name, schema=schema, index_params=index, consistency_level="Strong"
        )

    def drop(self) -> None:
        self._client.drop_collection(self._name)

    def upsert(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self._client.upsert(
                self._name,
                [{**point._asdict(), "vector": vector.tolist()} for point, vector in batch.rows()],
            )

    def count(self) -> int:
        (row,) = self._client.query(self._name, output_fields=["count(*)"])
        return int(row["count(*)"])

    def close(self) -> None:
        self._client.close()
