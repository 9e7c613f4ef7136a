"""`ance rerank`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.cli.flags import DATA, FLAGS, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, ENCODING_SETTINGS, checkpoint_of, dataset_of, run_stage
from ance_cli.config import EncodeConfig, RerankConfig
from ance_cli.config.common import PAIR_LENGTH
from ance_cli.errors import UsageProblem

FLAGS["cross_encoder"] = Flag(
    Path, "Cross-encoder folder that reads each query with each passage.", DATA, metavar="DIR"
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "rerank",
        "data corpus queries skip_bad ckpt embeddings cross_encoder pair_length output depth "
        f"tag {ENCODING_SETTINGS} gpus dtype batch_tokens threads force {COMMON}",
        configs="rerank encode",
        required="output",
        arguments={"run": (Path, ..., "TREC run; - is stdin.")},
        panel="Stages",
    )
    def rerank(flags: Flags) -> None:
        """Score the top of a run anew, with a dual encoder or with a cross-encoder.

        The best --depth documents of each query are put into a new order, what is below them is
        left out. With --ckpt a score is the inner product, of the vectors in --embeddings or else
        of the run's passages, encoded for this.

        Example: `ance rerank bm25.trec --data data/medquad --ckpt runs/ance/latest
        -o reranked.trec`
        """
        from ance_cli.retrieval.dense import vector_source
        from ance_cli.retrieval.rerank import rerank as stage

        if (flags.ckpt is None) == (flags.cross_encoder is None):
            raise UsageProblem("name what scores by exactly one of --ckpt DIR, --cross-encoder DIR")
        if flags.pair_length != PAIR_LENGTH and flags.ckpt is not None:
            raise UsageProblem("--pair-length goes with --cross-encoder")
        if flags.embeddings is not None and flags.ckpt is None:
            raise UsageProblem("--embeddings go with --ckpt: a cross-encoder reads texts")
        run_stage(
            flags,
            lambda call: stage(
                flags.run,
                dataset_of(flags),
                flags.output,
                checkpoint_of(flags) if flags.ckpt else None,
                vector_source(flags.embeddings, None) if flags.embeddings else None,
                flags.cross_encoder,
                flags.config(RerankConfig),
                flags.config(EncodeConfig),
                call=call,
            ),
        )
