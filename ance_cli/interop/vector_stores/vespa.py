"""Vespa: the documents of a schema that its owner has deployed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ance_cli.errors import ResourceExhausted, UsageProblem
from ance_cli.interop.vector_stores.store import Batch, Facts, Point, Vector, client


def fields(point: Point, vector: Vector | list[float]) -> dict[str, Any]:
    """The fields of a point's document."""
    return {**point._asdict(), "vector": {"values": vector}}


def feed_record(point: Point, vector: Vector, name: str) -> dict[str, Any]:
    """A line for `vespa feed`."""
    return {"put": f"id:{name}:{name}::{point.id}", "fields": fields(point, vector)}


class Vespa:
    """The documents of one schema, in the namespace of the same name.

    The schema has the fields of `Point` and a tensor `vector`; its distance metric and dimension
    are not visible to a client, so the facts are the checkpoint in a document.
    """

    def __init__(self, url: str, name: str) -> None:
        self._app, self._name = client("vespa.application", "vespa").Vespa(url), name

    def _found(self, hits: int) -> dict[str, Any]:
        yql = f"select checkpoint from {self._name} where true"
        found = self._app.query({"yql": yql, "hits": hits, "ranking": "unranked"}).json
        return dict(found["root"])

    def facts(self) -> Facts | None:
        hits = self._found(1).get("children")
        return {"checkpoint": hits[0]["fields"].get("checkpoint", "")} if hits else None

    def create(self, facts: Facts) -> None:
        """The schema is there already."""

    def drop(self) -> None:
        raise UsageProblem(
            f"{self._name}: --force cannot remove the documents of a Vespa schema",
            hint=f"remove them yourself (vespa destroy, or the visit API), or feed {self._name} "
            "under another name",
        )

    def upsert(self, batches: Iterator[Batch]) -> None:
        refused: list[str] = []

        def note(response: Any, id: str) -> None:
            if not response.is_successful():
                refused.append(f"{id}: {response.json}")

        for batch in batches:
            records = [
                {"id": point.id, "fields": fields(point, vector.tolist())}
                for point, vector in batch.rows()
            ]
            self._app.feed_iterable(records, self._name, self._name, note)
            if refused:
                raise ResourceExhausted(
                    f"Vespa refused {len(refused)} documents, the first one is {refused[0]}",
                    hint=f"deploy a schema {self._name} with the fields of the guide",
                )

    def count(self) -> int:
        return int(self._found(0)["fields"]["totalCount"])

    def close(self) -> None:
        pass
