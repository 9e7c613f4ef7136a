"""`ance train-segment`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import dataset_of, merged_data
from ance_cli.config import SegmentConfig, TrainConfig
from ance_cli.config.data import OutputFolder, RunStart
from ance_cli.config.setting import Given
from ance_cli.config.training import FrozenEmbeddings, NegativesFile, NodeConfig, Preset
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "train-segment",
        "Stages",
        takes=(*COMMON, "force", *LOADS, *READS),
    )
    def train_segment(
        call: Call,
        *,
        negatives: NegativesFile | None = None,
        start: Given[RunStart],
        output: OutputFolder,
        embeddings: FrozenEmbeddings | None = None,
        preset: Preset | None = None,
        recipe: Given[TrainConfig],
        segment: SegmentConfig,
        nodes: NodeConfig,
    ) -> Summary:
        """Train a run for some steps on one file of negatives.

        The first call creates the run folder. Later calls append segments to it and need only
        negatives, steps and the folder. If a segment is interrupted, the same command continues it.

        Example: `ance train-segment bm25.jsonl --data data/medquad --split train
        --ckpt bert-base-uncased/ --steps 900 -o runs/warmup`
        """
        from ance_cli.training.launch import Devices, Nodes
        from ance_cli.training.run_creation import RunSpec
        from ance_cli.training.train_segment import train_segment as stage

        is_located = bool({"datas", "corpus", "queries", "qrels"} & start.values.keys())
        if "split" in start.values and not is_located:
            raise UsageProblem("--split needs --data: a run keeps the split it started with")
        began = start.config()
        data = merged_data(began, output, call)
        dataset = dataset_of(began, data) if is_located else None
        machines = Nodes(nodes.nnodes, nodes.node_rank, nodes.rdzv_endpoint)
        return stage(
            output,
            negatives,
            segment,
            RunSpec(dataset, began.ckpt, preset, recipe.values),
            Devices(nodes.gpus, nodes.cpu_workers, machines),
            embeddings,
            call,
        )
