"""`ance export onnx`: a checkpoint's encoders as ONNX graphs, compared with torch's vectors."""

from __future__ import annotations

from pathlib import Path

from ance_cli.call import Call
from ance_cli.config.sets import Side
from ance_cli.errors import BadInput, ResourceExhausted
from ance_cli.formats import lease
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.models.checkpoint import Checkpoint, write_settings

TOLERANCE = 1e-4
"""The largest allowed difference between a component of torch's and of onnxruntime's vectors."""


def needs_two_graphs(checkpoint: Checkpoint) -> bool:
    """Whether a shared tower leaves two different prompts out of its pooling: a graph leaves out a
    number of tokens that is fixed in it."""
    settings = checkpoint.settings
    leaves_out = checkpoint.shared and checkpoint.tower("query").leaves_prompt_out
    return leaves_out and settings.query_prefix != settings.passage_prefix


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    call: Call = Call(),
) -> Summary:
    """Write a folder with the graph and the tokenizer of each tower, and the encoding settings.

    A graph, `onnx/model.onnx`, takes `input_ids` and `attention_mask`, (batch, tokens) int64, and
    returns `sentence_embedding`, (batch, dim) float32, in which pooling, head and normalisation
    are computed, and of a Transformer `last_hidden_state`, (batch, tokens, h). The encoding
    settings that concern the text are not part of the graph. The folder of a tower also holds its
    modules, so that `SentenceTransformer(folder, backend="onnx")` loads it. Raises
    `ResourceExhausted`, and writes nothing, if onnxruntime's vectors differ from torch's by more
    than `TOLERANCE`.
    """
    refuse_stdio(output, "a folder of graphs and tokenizers")
    checkpoint.need_head()
    if needs_two_graphs(checkpoint):
        raise BadInput(
            f"{checkpoint.shown}: leaves the prompt out of the pooling, and queries and passages "
            "have different ones: one graph cannot leave out both",
            hint="encode with ance or sentence-transformers",
        )
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
    from ance_cli.models.onnx import need_onnx

    need_onnx()
    largest = 0.0
    with lease.of_output(output):
        with (
            plan.new_partial() as folder,
            call.reporter.task("exporting", len(sides), "tower") as bar,
        ):
            for side in sides:
                place = folder if checkpoint.shared else folder / side
                largest = max(largest, _write_graph(checkpoint, side, place))
                bar.advance()
            write_settings(folder, checkpoint.settings)
        stats = {"dim": checkpoint.dim, "largest_difference": largest}
        manifest = plan.publish_folder({}, stats)
    return summary_of(manifest, output, up_to_date=False)


def _write_graph(checkpoint: Checkpoint, side: Side, folder: Path) -> float:
    """Write a tower's graph and tokenizer; returns the largest difference from torch's vectors."""
    from ance_cli.models.onnx import write_onnx

    folder.mkdir(exist_ok=True)
    difference = write_onnx(checkpoint, side, folder)
    if not difference <= TOLERANCE:
        raise ResourceExhausted(
            f"{checkpoint.shown}: the vectors of the {side} tower's ONNX graph differ from torch's "
            f"by {difference:.2g}, more than {TOLERANCE}; nothing was written",
            hint="try another version of torch or onnxruntime",
        )
    return difference
