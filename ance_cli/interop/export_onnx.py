"""`ance export onnx`: a checkpoint's encoders as ONNX graphs, compared with torch's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config.sets import Side
from ance_cli.errors import ResourceExhausted
from ance_cli.formats import atomic, lease
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.manifest import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.models.checkpoint import Checkpoint, write_settings

TOLERANCE = 1e-4
"""The largest difference, in any component, between the vectors of the two."""


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    call: Call = Call(),
) -> Summary:
    """Write a folder with a graph for each tower, its tokenizer, and the pins.

    A graph takes `input_ids` and `attention_mask`, (batch, tokens) int64, and gives
    `sentence_embedding`, (batch, dim) float32: pooling, head and normalisation are in it, what the
    pins say of the text is not. Raises `ResourceExhausted` where onnxruntime's vectors differ from
    torch's by more than `TOLERANCE`; nothing is published then.
    """
    refuse_stdio(output, "a folder of graphs and tokenizers")
    checkpoint.need_head()
    sides: tuple[Side, ...] = ("passage",) if checkpoint.shared else ("query", "passage")
    hashes = {side: checkpoint.tower_hash(side) for side in ("query", "passage")}
    plan = Plan(
        "export-folder",
        output,
        {"form": "onnx"},
        hashes,
        {"checkpoint": str(checkpoint.path)},
        reads=[checkpoint.path],
    )
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    from ance_cli.models.onnx import need_onnx, write_onnx

    need_onnx()
    with lease.hold(lease.lease_name(output), str(output)):
        folder = plan.open_partial(force=True)
        stats: dict[str, Any] = {"dim": checkpoint.dim, "largest_difference": 0.0}
        try:
            with (
                atomic.disk_errors(output),
                call.reporter.task("exporting", len(sides), "tower") as bar,
            ):
                for side in sides:
                    place = folder if checkpoint.shared else folder / side
                    place.mkdir(exist_ok=True)
                    difference = write_onnx(checkpoint, side, place)
                    if not difference <= TOLERANCE:
                        raise ResourceExhausted(
                            f"{checkpoint.shown}: the ONNX graph of its {side} tower gives vectors "
                            f"that differ from torch's by {difference:.2g}, more than {TOLERANCE}",
                            hint="another version of torch or onnxruntime may do; "
                            "nothing was published",
                        )
                    stats["largest_difference"] = max(difference, stats["largest_difference"])
                    bar.advance()
                write_settings(folder, checkpoint.settings)
        except BaseException:  # it cannot be continued
            atomic.remove(folder)
            raise
        manifest = plan.publish_folder({}, stats)
    return summary_of(manifest, output, up_to_date=False)
