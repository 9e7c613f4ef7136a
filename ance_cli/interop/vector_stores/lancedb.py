"""LanceDB: tables in a folder or a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ance_cli.interop.vector_stores.store import Batch, Facts, client
from ance_cli.interop.vector_stores.table import record_batch, schema


class LanceDb:
    """A table; its facts are the metadata of its schema. A search names the distance itself."""

    def __init__(self, url: str, name: str) -> None:
        self._db, self._name = client("lancedb", "lancedb").connect(url), name

    @property
    def _table(self) -> Any:
        return self._db.open_table(self._name)

    def facts(self) -> Facts | None:
        if self._name not in self._db.list_tables().tables:
            return None
        metadata = self._table.schema.metadata or {}
        found = {key.decode(): value.decode() for key, value in metadata.items()}
        return {
            name: found[f"ance.{name}"]
            for name in ("checkpoint", "dim", "distance")
            if f"ance.{name}" in found
        }

    def create(self, facts: Facts) -> None:
        self._db.create_table(self._name, schema=schema(facts))

    def drop(self) -> None:
        self._db.drop_table(self._name)

    def upsert(self, batches: Iterator[Batch]) -> None:
        """Write all points in one version of the table."""
        import pyarrow as pa

        table = self._table
        reader = pa.RecordBatchReader.from_batches(
            table.schema, (record_batch(batch, table.schema) for batch in batches)
        )
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(reader)

    def count(self) -> int:
        return int(self._table.count_rows())

    def close(self) -> None:
        pass
