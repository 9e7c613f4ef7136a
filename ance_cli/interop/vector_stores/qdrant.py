"""Qdrant: a server, or the local mode of its client in a folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

from ance_cli.interop.vector_stores.store import Batch, Facts, client


def point_id(id: str) -> str:
    """The UUID of a point: Qdrant takes no other texts as ids."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, id))


class Qdrant:
    """A collection; its facts are its metadata."""

    def __init__(self, url: str, name: str) -> None:
        self._module, self._name = client("qdrant_client", "qdrant"), name
        key = os.environ.get("QDRANT_API_KEY")
        place = {"url": url, "api_key": key} if "://" in url else {"path": url}
        self._client = self._module.QdrantClient(**place)

    def facts(self) -> Facts | None:
        if not self._client.collection_exists(self._name):
            return None
        metadata = self._client.get_collection(self._name).config.metadata or {}
        return dict(metadata.get("ance") or {})

    def create(self, facts: Facts) -> None:
        models = self._module.models
        distance = {"dot": models.Distance.DOT, "cosine": models.Distance.COSINE}
        self._client.create_collection(
            self._name,
            models.VectorParams(size=int(facts["dim"]), distance=distance[facts["distance"]]),
            metadata={"ance": facts},
        )

    def drop(self) -> None:
        self._client.delete_collection(self._name)

    def upsert(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self._client.upsert(
                self._name,
                self._module.models.Batch(
                    ids=[point_id(point.id) for point in batch.points],
                    vectors=batch.vectors.tolist(),
                    payloads=[point.payload for point in batch.points],
                ),
            )

    def count(self) -> int:
        return int(self._client.count(self._name).count)

    def close(self) -> None:
        self._client.close()
