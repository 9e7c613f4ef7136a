"""Points as rows of Arrow: the schema and the batches of LanceDB's tables and of Parquet files."""

from __future__ import annotations

from typing import Any

from ance_cli.interop.vector_stores.store import Batch, Facts, Point


def schema(facts: Facts, fixed: bool = True) -> Any:
    """The `pyarrow.Schema` of points and their vectors, lists of a `fixed` size or, for Milvus, of
    any; its metadata are the facts."""
    import pyarrow as pa

    types = {"segment": pa.int32()}
    fields = [pa.field(name, types.get(name, pa.string())) for name in Point._fields]
    vector = pa.field("vector", pa.list_(pa.float32(), int(facts["dim"]) if fixed else -1))
    return pa.schema(
        [*fields, vector], metadata={f"ance.{name}": value for name, value in facts.items()}
    )


def record_batch(batch: Batch, schema: Any) -> Any:
    """The `pyarrow.RecordBatch` of such a schema."""
    import pyarrow as pa

    columns = dict(zip(Point._fields, map(list, zip(*batch.points, strict=True)), strict=True))
    vectors = pa.FixedSizeListArray.from_arrays(batch.vectors.ravel(), batch.vectors.shape[1])
    arrays = [pa.array(columns[name], schema.field(name).type) for name in Point._fields]
    listed = vectors.cast(schema.field("vector").type)
    return pa.RecordBatch.from_arrays([*arrays, listed], schema=schema)
