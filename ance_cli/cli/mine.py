"""`ance mine`."""

from __future__ import annotations

import typer

from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, ENCODING_SETTINGS, checkpoint_of, dataset_of, run_stage
from ance_cli.config import EncodeConfig, MineConfig

DRAWING = (
    "depth negatives mix sampler sampler_temperature simans_a simans_b range_min range_max "
    "min_score max_score answers teacher teacher_max teacher_pairs pair_length engine k1 b"
)
MARGINS = "absolute_margin relative_margin"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "mine",
        "ckpt data split corpus queries qrels min_rel skip_bad embeddings index output candidates "
        f"previous overlap_with with_text {DRAWING} {MARGINS} audit_bm25 seed probes "
        f"{ENCODING_SETTINGS} gpus ray dtype batch_tokens threads force {COMMON}",
        configs="mine encode",
        required="ckpt output",
        defaults={"split": "train"},
        panel="Stages",
    )
    def mine(flags: Flags) -> None:
        """Mine negatives with the model: the top of the whole corpus without the positives.

        Searches embeddings exactly, or an index. Beside the negatives it writes the candidates they
        were drawn from and an audit. --mix brings in BM25, the corpus at random, the candidates of
        an earlier model and the neighbours of the positive; a document is drawn once for a pair.

        Example: `ance mine --ckpt runs/warmup/latest --data data/medquad --split train
        --embeddings emb/ -o ann.jsonl`
        """
        from ance_cli.mining.mine import mine as stage
        from ance_cli.retrieval.dense import vector_source

        run_stage(
            flags,
            lambda call: stage(
                checkpoint_of(flags),
                dataset_of(flags),
                vector_source(flags.embeddings, flags.index),
                flags.output,
                flags.config(MineConfig),
                flags.config(EncodeConfig),
                candidates_folder=flags.candidates,
                previous=flags.previous,
                earlier=flags.overlap_with,
                with_text=flags.with_text,
                call=call,
            ),
        )
