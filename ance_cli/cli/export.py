"""`ance export`."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, dataset_of, run_stage
from ance_cli.config import ExportConfig
from ance_cli.formats.summary import Summary
from ance_cli.interop import EXPORT_FORMATS, NEGATIVES_FORMS, ONNX

ExportFormat = StrEnum("ExportFormat", list(EXPORT_FORMATS))  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "export",
        "data split corpus queries qrels min_rel skip_bad output negatives depth separator force "
        f"{COMMON}",
        required="output",
        arguments={
            "form": (ExportFormat, ..., "What to write. From negatives: tevatron, tevatron-v2, "
                     "flagembedding, sentence-transformers, ann-training-data; from a run: "
                     "dpr-reader, msmarco-run; from a checkpoint: onnx."),
            "source": (Path, ..., "Negatives file, TREC run or checkpoint folder."),
        },
        defaults={field.name: field.default for field in fields(ExportConfig)},
        panel="Stages",
    )  # fmt: skip
    def export(flags: Flags) -> None:
        """Write negatives, a run or a checkpoint in a neighbour's form.

        Negatives as rows to train on, with the texts of --data and the labels of --split: a file
        (.gz, .zst; Arrow for sentence-transformers), or a folder for tevatron-v2 (rows and corpus)
        and ann-training-data (the original ANCE code). A run for a reader, with has_answer, or in
        MS MARCO's three columns. A checkpoint as ONNX, whose vectors are compared with torch's.

        Embeddings need no export: `ance index` makes the folder that pyserini opens, and FAISS its
        file `index`.

        Example: `ance export tevatron ann.jsonl --data data/medquad --split train -o out.jsonl`
        """
        run_stage(flags, lambda call: _export(flags, call))


def _export(flags: Flags, call: Call) -> Summary:
    if flags.form == ONNX:
        from ance_cli.interop.export_onnx import export_onnx
        from ance_cli.models.checkpoint import Checkpoint

        return export_onnx(Checkpoint(flags.source), flags.output, call=call)
    from ance_cli.interop.export import export_negatives, export_run

    config = flags.config(ExportConfig)
    if flags.form in NEGATIVES_FORMS:
        return export_negatives(
            flags.form, flags.source, dataset_of(flags), flags.output, config, call=call,
        )  # fmt: skip
    dataset = dataset_of(flags) if flags.data or flags.corpus else None
    return export_run(flags.form, flags.source, flags.output, dataset, config, call=call)
