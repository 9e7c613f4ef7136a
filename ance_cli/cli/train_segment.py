"""`ance train-segment`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, data_of, dataset_of, run_stage
from ance_cli.config import SegmentConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary

RECIPE = (
    "preset total_steps batch_size accumulation negatives_per_positive in_batch loss margin "
    "distill distill_weight optimizer lr schedule warmup_steps weight_decay max_grad_norm dropout "
    "dtype scale towers similarity dim query_length passage_length separator segmentation "
    "max_segments seed min_rel"
)
RUNNING = "log_every grad_cache gradient_checkpointing track cpu_workers"
"""How a call runs, beside what it computes."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "train-segment",
        f"datas split corpus queries qrels skip_bad ckpt embeddings output steps {RECIPE} "
        f"freeze_passages live_depth follow max_staleness checkpoint_every state_minutes {RUNNING} "
        f"gpus nnodes node_rank rdzv_endpoint threads force {COMMON}",
        configs="train segment",
        required="output",
        arguments={"negatives": (Path | None, None, "Negatives file, or - for stdin.")},
        defaults={"split": "train"},
        panel="Stages",
    )
    def train_segment(flags: Flags) -> None:
        """Train a run for some steps on one file of negatives.

        The first call makes the run folder; later calls append segments to it and need only
        negatives, steps and the folder. An interrupted segment is continued by the same command.

        Example: `ance train-segment bm25.jsonl --data data/medquad --split train
        --ckpt bert-base-uncased/ --steps 900 -o runs/warmup`
        """
        from ance_cli.training.launch import Nodes
        from ance_cli.training.train_segment import train_segment as stage

        located = {"datas", "corpus", "queries", "qrels"} & set(flags.typed)
        if "split" in flags.typed and not located:
            raise UsageProblem("--split goes with --data: a run keeps the split it began with")

        def train(call: Call) -> Summary:
            data = data_of(flags, call)
            return stage(
                flags.output,
                flags.negatives,
                flags.config(SegmentConfig),
                dataset=dataset_of(flags, data) if located else None,
                checkpoint=flags.ckpt,
                preset=flags.preset,
                given=flags.typed,
                gpus=flags.gpus,
                cpu_workers=flags.cpu_workers,
                nodes=Nodes(flags.nnodes, flags.node_rank, flags.rdzv_endpoint),
                embeddings=flags.embeddings,
                call=call,
            )

        run_stage(flags, train)
