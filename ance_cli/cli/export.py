"""`ance export`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, READS, command
from ance_cli.cli.runner import dataset_of
from ance_cli.config import ExportConfig, VectorStoreConfig
from ance_cli.config.data import DataFiles, Output
from ance_cli.config.interop import Form, Source
from ance_cli.config.setting import check
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary
from ance_cli.interop import NEGATIVES_FORMS, ONNX, VECTOR_FORMS


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "export", "Stages", takes=(*COMMON, "trust_remote_code", "force", *READS))
    def export(
        call: Call,
        *,
        form: Form,
        source: Source,
        data: DataFiles,
        output: Output | None = None,
        config: ExportConfig,
        store: VectorStoreConfig,
    ) -> Summary:
        """Write negatives, a run, embeddings or a checkpoint in the format of another tool.

        Negatives become training rows with the texts of --data and the labels of --split: a file
        (.gz or .zst; .parquet or .arrow for sentence-transformers), or a folder for tevatron-v2
        (rows and corpus) and ann-training-data (the original ANCE code). A run becomes rows for a
        reader, with has_answer, or MS MARCO's three columns. A checkpoint becomes ONNX; its vectors
        are compared with torch's.

        Embeddings with the texts of --data are written to a collection of a vector database
        (--url), or to a file that it loads (-o). The collection notes the checkpoint; one that
        notes another checkpoint is refused. pyserini and FAISS need no export: `ance index` writes
        the folder that pyserini opens, and FAISS opens the file `index` inside.

        Example: `ance export tevatron ann.jsonl --data data/medquad --split train -o out.jsonl`
        """
        if form in VECTOR_FORMS:
            from ance_cli.interop.export_vectors import export_vectors

            return export_vectors(form, source, dataset_of(data).corpus, output, store, call)
        check(store == VectorStoreConfig(), f"--url and --collection do not apply to {form}")
        if output is None:
            raise UsageProblem(f"{form} is written to a file or folder", hint="name it with -o")
        if form == ONNX:
            from ance_cli.interop.export_onnx import export_onnx
            from ance_cli.models.checkpoint import Checkpoint

            return export_onnx(Checkpoint(source), output, call=call)
        from ance_cli.interop.export import export_negatives, export_run

        if form in NEGATIVES_FORMS:
            return export_negatives(form, source, dataset_of(data), output, config, call=call)
        dataset = dataset_of(data) if data.data or data.corpus else None
        return export_run(form, source, output, dataset, config, call=call)
