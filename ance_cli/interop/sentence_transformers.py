"""sentence-transformers' training columns: `anchor`, `positive`, `negative_1` to `negative_n`.

With a teacher, `label` lists its scores of the positive and of each negative: MarginMSELoss takes
their margins and DistillKLDivLoss their softmax, and other losses leave them unused.
"""

from __future__ import annotations

from typing import Any

from ance_cli.interop.records import Example


def columns(negatives: int) -> list[str]:
    """The names of the columns with texts; the trainer uses their order."""
    return ["anchor", "positive", *(f"negative_{number + 1}" for number in range(negatives))]


def row_of(example: Example, separator: str, scored: bool) -> dict[str, Any]:
    """The row of one pair, with one column per negative, and if `scored` its label."""
    passages = (example.positive, *example.negatives)
    texts = (example.query.text, *(passage.joined(separator) for passage in passages))
    row: dict[str, Any] = dict(zip(columns(len(example.negatives)), texts, strict=True))
    if scored:
        row["label"] = [example.teacher_positive_score, *example.teacher_scores]
    return row


def schema(negatives: int, scored: bool) -> Any:
    """The `pyarrow.Schema` of such rows."""
    import pyarrow as pa

    texts = [(name, pa.large_string()) for name in columns(negatives)]
    return pa.schema([*texts, *([("label", pa.list_(pa.float32()))] if scored else [])])
