"""`ance generate-queries`."""

from __future__ import annotations

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import dataset_of
from ance_cli.config import ComputeConfig, DeviceConfig, QueryConfig
from ance_cli.config.data import Ckpt, CorpusFiles, Embeddings, Index, OutputFolder
from ance_cli.config.setting import check
from ance_cli.errors import UsageProblem
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "generate-queries", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def generate_queries(
        call: Call,
        *,
        data: CorpusFiles,
        config: QueryConfig,
        ckpt: Ckpt | None = None,
        embeddings: Embeddings | None = None,
        index: Index | None = None,
        output: OutputFolder,
        device: DeviceConfig,
    ) -> Summary:
        """Let a model write the queries for a corpus that has no labels.

        The model is a local one, or one behind an OpenAI-compatible --endpoint. A query is kept if
        a retriever finds its passage (--round-trip-depth). The output is a dataset folder: the
        corpus, the queries, and labels with each query's passage as its positive. A repeated call
        continues where an interrupted one stopped.

        Example: `ance generate-queries --corpus corpus.jsonl --model doc2query/msmarco-t5-base-v1
        -o data/generated`
        """
        from ance_cli.models.checkpoint import Checkpoint
        from ance_cli.query_generation.generate_queries import generate_queries as stage
        from ance_cli.retrieval.dense import vector_source
        from ance_cli.retrieval.search import Bm25Searcher, DenseSearcher, Searcher

        dataset = dataset_of(data)
        searcher: Searcher | None = None
        if config.retriever == "dense":
            if ckpt is None:
                raise UsageProblem(
                    "--engine dense needs --ckpt", hint="or use --engine lucene for BM25"
                )
            compute = ComputeConfig(gpus=device.gpus, dtype=device.dtype)
            source = vector_source(embeddings, index)
            searcher = DenseSearcher(Checkpoint(ckpt), source, dataset.corpus, compute)
        else:
            check(not (ckpt or embeddings or index),
                  "--ckpt, --embeddings and --index need --engine dense")  # fmt: skip
            searcher = Bm25Searcher(dataset.corpus) if config.retriever else None
        return stage(dataset, output, config, searcher, device, call)
