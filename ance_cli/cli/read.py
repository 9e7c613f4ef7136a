"""`ance read`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.cli.flags import DATA, FLAGS, METHOD, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, dataset_of, run_stage
from ance_cli.config import EncodeConfig, ReadConfig

FLAGS |= {
    "reader": Flag(Path, "Reader's folder: DPR's reader, another extractive model, or a generative "
                   "one.", DATA, metavar="DIR"),
    "answer_tokens": Flag(int, "Longest answer in tokens; 0 = the reader's own: 10 (DPR), 30 "
                          "(other spans), 32 (generated).", METHOD),
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "read",
        "data split corpus queries qrels skip_bad reader output depth answer_tokens gpus dtype "
        f"batch_tokens threads force {COMMON}",
        configs="encode",
        required="reader output",
        arguments={"run": (Path, ..., "TREC run; - is stdin.")},
        defaults={"depth": ReadConfig.depth, "answer_tokens": ReadConfig.answer_tokens},
        panel="Stages",
    )
    def read(flags: Flags) -> None:
        """Answer a run's queries from its top passages (OpenQA, end to end).

        An extractive reader gives the best span of the passages, a generative one writes after a
        prompt that holds them. A line of the output has query_id, question, answer, doc_id and
        score; where the dataset has answers also exact_match and f1, as SQuAD v1.1 computes them,
        whose means end the command.

        Example: `ance read test.trec --data data/nq --split test --reader dpr-reader/ --depth 50
        -o answers.jsonl`
        """
        from ance_cli.evaluation.read import read as stage

        run_stage(
            flags,
            lambda call: stage(
                flags.run,
                dataset_of(flags),
                flags.reader,
                flags.output,
                flags.config(ReadConfig),
                flags.config(EncodeConfig),
                call=call,
            ),
        )
