"""Elasticsearch and OpenSearch, whose indexes differ in the field of the vector."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ance_cli.interop.vector_stores.store import Batch, Facts, Point, Vector, client

_TYPES = {"segment": "integer", "title": "text", "text": "text"}
"""The types of fields other than keywords."""


def source(point: Point, vector: Vector | list[float]) -> dict[str, Any]:
    """The document of a point, as `_bulk` takes it."""
    return {**point.payload, "vector": vector}


class _Index:
    """An index; its facts are the `_meta` of its mapping."""

    _client: Any
    _helpers: Any

    def __init__(self, name: str) -> None:
        self._name = name

    def _mapping(self, facts: Facts, vector: dict[str, Any]) -> dict[str, Any]:
        fields = {name: {"type": _TYPES.get(name, "keyword")} for name in Point._fields[1:]}
        return {"_meta": facts, "properties": {**fields, "vector": vector}}

    def facts(self) -> Facts | None:
        if not self._client.indices.exists(index=self._name):
            return None
        (found,) = self._client.indices.get_mapping(index=self._name).values()
        meta = found["mappings"].get("_meta", {})
        return {name: meta[name] for name in ("checkpoint", "dim", "distance") if name in meta}

    def drop(self) -> None:
        self._client.indices.delete(index=self._name)

    def upsert(self, batches: Iterator[Batch]) -> None:
        actions = (
            {"_index": self._name, "_id": point.id, "_source": source(point, vector.tolist())}
            for batch in batches
            for point, vector in batch.rows()
        )
        self._helpers.bulk(self._client, actions)

    def count(self) -> int:
        self._client.indices.refresh(index=self._name)
        return int(self._client.count(index=self._name)["count"])

    def close(self) -> None:
        self._client.close()


class Elasticsearch(_Index):
    def __init__(self, url: str, name: str) -> None:
        super().__init__(name)
        module = client("elasticsearch", "elasticsearch")
        self._client = module.Elasticsearch(url, api_key=os.environ.get("ELASTIC_API_KEY"))
        self._helpers = client("elasticsearch.helpers", "elasticsearch")

    def create(self, facts: Facts) -> None:
        # `dot_product` would refuse vectors that are not of length one
        similarity = {"dot": "max_inner_product", "cosine": "cosine"}[facts["distance"]]
        vector = {"type": "dense_vector", "dims": int(facts["dim"]), "similarity": similarity}
        self._client.indices.create(index=self._name, mappings=self._mapping(facts, vector))


class OpenSearch(_Index):
    def __init__(self, url: str, name: str) -> None:
        super().__init__(name)
        self._client = client("opensearchpy", "opensearch").OpenSearch(url)
        self._helpers = client("opensearchpy.helpers", "opensearch")

    def create(self, facts: Facts) -> None:
        space = {"dot": "innerproduct", "cosine": "cosinesimil"}[facts["distance"]]
        method = {"name": "hnsw", "engine": "lucene", "space_type": space}
        vector = {"type": "knn_vector", "dimension": int(facts["dim"]), "method": method}
        body = {"settings": {"index.knn": True}, "mappings": self._mapping(facts, vector)}
        self._client.indices.create(index=self._name, body=body)
