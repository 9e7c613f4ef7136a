"""`ance export`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, READS, command
from ance_cli.cli.runner import dataset_of
from ance_cli.config import ExportConfig
from ance_cli.config.data import DataFiles, Output
from ance_cli.config.interop import Form, Source
from ance_cli.formats.summary import Summary
from ance_cli.interop import NEGATIVES_FORMS, ONNX


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "export", "Stages", takes=(*COMMON, "trust_remote_code", "force", *READS))
    def export(
        call: Call,
        *,
        form: Form,
        source: Source,
        data: DataFiles,
        output: Output,
        config: ExportConfig,
    ) -> Summary:
        """Write negatives, a run or a checkpoint in the format of another tool.

        Negatives become training rows with the texts of --data and the labels of --split: a file
        (.gz or .zst; .parquet or .arrow for sentence-transformers), or a folder for tevatron-v2
        (rows and corpus) and ann-training-data (the original ANCE code). A run becomes rows for a
        reader, with has_answer, or MS MARCO's three columns. A checkpoint becomes ONNX; its vectors
        are compared with torch's.

        Embeddings need no export: `ance index` writes the folder that pyserini opens, and FAISS
        opens the file `index` inside.

        Example: `ance export tevatron ann.jsonl --data data/medquad --split train -o out.jsonl`
        """
        if form == ONNX:
            from ance_cli.interop.export_onnx import export_onnx
            from ance_cli.models.checkpoint import Checkpoint

            return export_onnx(Checkpoint(source), output, call=call)
        from ance_cli.interop.export import export_negatives, export_run

        if form in NEGATIVES_FORMS:
            return export_negatives(form, source, dataset_of(data), output, config, call=call)
        dataset = dataset_of(data) if data.data or data.corpus else None
        return export_run(form, source, output, dataset, config, call=call)
