"""sentence-transformers' training columns: `anchor`, `positive`, `negative_1` to `negative_n`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import IO

from ance_cli.errors import UsageProblem
from ance_cli.interop.records import Example

_BATCH = 1024


def columns(negatives: int) -> list[str]:
    """The names of the columns; the trainer uses their order."""
    return ["anchor", "positive", *(f"negative_{number + 1}" for number in range(negatives))]


def row_of(example: Example, separator: str) -> dict[str, str]:
    """The row of one pair, with one column per negative."""
    passages = (example.positive, *example.negatives)
    texts = (example.query.text, *(passage.joined(separator) for passage in passages))
    return dict(zip(columns(len(example.negatives)), texts, strict=True))


def need_arrow() -> None:
    """Raise `UsageProblem` if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UsageProblem(
            "writing an .arrow file needs pyarrow, which is not installed",
            hint="pip install 'ance-cli[arrow]', or name a .jsonl file with -o",
        ) from error


def write_arrow(handle: IO[bytes], rows: Iterable[dict[str, str]], negatives: int) -> None:
    """Write rows in Arrow's streaming form, which `datasets.Dataset.from_file` maps into memory."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.large_string()) for name in columns(negatives)])
    source = iter(rows)
    with pa.ipc.new_stream(handle, schema) as stream:
        while batch := list(islice(source, _BATCH)):
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema))
