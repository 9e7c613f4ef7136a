"""Rows as Arrow's stream or as Parquet, written batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ance_cli.errors import UsageProblem

_BATCH = 1024
"""Rows of a batch: of what is in memory, and of a row group of Parquet."""


def is_arrow(output: Path) -> bool:
    """Whether the name asks for Arrow's stream."""
    return ".arrow" in output.suffixes


def is_parquet(output: Path) -> bool:
    """Whether the name asks for Parquet."""
    return ".parquet" in output.suffixes


def check_output(output: Path) -> None:
    """Raise `UsageProblem` for compressed Parquet."""
    if is_parquet(output) and output.suffix != ".parquet":
        raise UsageProblem(
            f"{output}: Parquet is compressed inside the file", hint="name a .parquet file with -o"
        )


def batches_of(rows: Iterable[dict[str, Any]], schema: Any) -> Iterator[Any]:
    """Yield rows as the `pyarrow.RecordBatch`es of a schema."""
    import pyarrow as pa

    source = iter(rows)
    while batch := list(islice(source, _BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema)


def write(handle: IO[bytes], batches: Iterable[Any], schema: Any, output: Path) -> None:
    """Write the batches of a `pyarrow.Schema` in the form that the name of the output asks for.

    `datasets.Dataset.from_file` maps Arrow's stream into memory; `datasets.load_dataset` reads
    Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = (
        pq.ParquetWriter(pa.PythonFile(handle, "w"), schema)
        if is_parquet(output)
        else pa.ipc.new_stream(handle, schema)
    )
    with opened as stream:
        for batch in batches:
            stream.write_batch(batch)
