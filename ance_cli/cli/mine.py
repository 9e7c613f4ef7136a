"""`ance mine`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import DriverConfig, MineConfig
from ance_cli.config.data import Ckpt, Embeddings, EncodingOverrides, Index, Output, TrainFiles
from ance_cli.config.mining import CandidatesFolder, OverlapWith, Previous, WithText
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "mine", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def mine(
        call: Call,
        *,
        ckpt: Ckpt,
        data: TrainFiles,
        embeddings: Embeddings | None = None,
        index: Index | None = None,
        output: Output,
        candidates: CandidatesFolder | None = None,
        previous: Previous | None = None,
        overlap_with: OverlapWith | None = None,
        with_text: WithText = False,
        config: MineConfig,
        overrides: EncodingOverrides,
        compute: DriverConfig,
    ) -> Summary:
        """Mine negatives with the model: the top of the whole corpus without the positives.

        Searches embeddings exactly, or an index. Next to the negatives it writes an audit and the
        candidates that the negatives were drawn from. --mix adds BM25, random documents of the
        corpus, the candidates of an earlier model and the neighbours of the positive. A document
        is drawn at most once per pair.

        Example: `ance mine --ckpt runs/warmup/latest --data data/medquad --split train
        --embeddings emb/ -o ann.jsonl`
        """
        from ance_cli.mining.mine import mine as stage
        from ance_cli.mining.mining_job import MiningFiles
        from ance_cli.retrieval.dense import vector_source

        return stage(
            checkpoint_of(ckpt, overrides),
            dataset_of(data),
            vector_source(embeddings, index),
            MiningFiles(output, overlap_with, with_text, candidates, previous),
            config,
            compute,
            call,
        )
