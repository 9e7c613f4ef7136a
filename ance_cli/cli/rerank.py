"""`ance rerank`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import PAIR_LENGTH, ComputeConfig, RerankConfig
from ance_cli.config.data import Ckpt, Embeddings, EncodingOverrides, Output, PassageFiles, RunFile
from ance_cli.config.retrieval import CrossEncoder
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "rerank", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def rerank(
        call: Call,
        *,
        run: RunFile,
        data: PassageFiles,
        ckpt: Ckpt | None = None,
        embeddings: Embeddings | None = None,
        cross_encoder: CrossEncoder | None = None,
        output: Output,
        config: RerankConfig,
        overrides: EncodingOverrides,
        compute: ComputeConfig,
    ) -> Summary:
        """Rerank the top of a run with a dual encoder or a cross-encoder.

        The best --depth documents of each query get new scores and a new order; documents below
        them are dropped. With --ckpt the score is the inner product of vectors, read from
        --embeddings or encoded from the run's passages.

        Example: `ance rerank bm25.trec --data data/medquad --ckpt runs/ance/best
        -o reranked.trec`
        """
        from ance_cli.retrieval.dense import vector_source
        from ance_cli.retrieval.rerank import CrossScoring, DualScoring, Scoring
        from ance_cli.retrieval.rerank import rerank as stage

        if (ckpt is None) == (cross_encoder is None):
            raise UsageProblem("name exactly one scorer: --ckpt DIR or --cross-encoder DIR")
        if config.pair_length != PAIR_LENGTH and ckpt is not None:
            raise UsageProblem("--pair-length needs --cross-encoder")
        if embeddings is not None and ckpt is None:
            raise UsageProblem("--embeddings needs --ckpt: a cross-encoder reads texts")
        scoring: Scoring
        if ckpt is not None:
            source = vector_source(embeddings, None) if embeddings else None
            scoring = DualScoring(checkpoint_of(ckpt, overrides), source)
        else:
            assert cross_encoder is not None
            scoring = CrossScoring(cross_encoder)
        return stage(
            run,
            dataset_of(data),
            output,
            scoring,
            config,
            compute,
            call=call,
        )
