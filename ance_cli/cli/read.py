"""`ance read`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import dataset_of
from ance_cli.config import ComputeConfig, ReadConfig
from ance_cli.config.data import DataFiles, Output, RunFile
from ance_cli.config.evaluation import Reader
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "read", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def read(
        call: Call,
        *,
        run: RunFile,
        data: DataFiles,
        reader: Reader,
        output: Output,
        config: ReadConfig,
        compute: ComputeConfig,
    ) -> Summary:
        """Answer a run's queries from its top passages (OpenQA, end to end).

        An extractive reader returns the best span of the passages; a generative reader writes an
        answer from a prompt that contains them. Each output line has query_id, question, answer,
        doc_id and score, and exact_match and f1 (as SQuAD v1.1 computes them) if the dataset has
        answers. The summary shows their means.

        Example: `ance read test.trec --data data/nq --split test --reader dpr-reader/ --depth 50
        -o answers.jsonl`
        """
        from ance_cli.evaluation.read import read as stage

        return stage(run, dataset_of(data), reader, output, config, compute, call=call)
