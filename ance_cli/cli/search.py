"""`ance search`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from ance_cli.call import Call, SkippedLines
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import ComputeConfig, SearchConfig
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt, DataFiles, Embeddings, EncodingOverrides, Index, Output
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import NO_CORPUS, Dataset
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "search", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def search(
        call: Call,
        asked: CallSettings,
        *,
        ckpt: Ckpt | None = None,
        data: DataFiles,
        embeddings: Embeddings | None = None,
        index: Index | None = None,
        output: Output | None = None,
        config: SearchConfig,
        overrides: EncodingOverrides,
        compute: ComputeConfig,
    ) -> Summary | None:
        """Rank documents for queries, to a TREC run or to readable hits.

        Queries come from the split, from --queries FILE, or with `--queries -` from stdin, one per
        line. Without -o, a terminal shows the hits with their texts, and a pipe gets a TREC run.

        Example: `echo "what causes gout" | ance search --ckpt runs/ance/best --embeddings emb/
        --data data/medquad --queries - --depth 5`
        """
        from ance_cli.retrieval.dense import vector_source
        from ance_cli.retrieval.search import Bm25Searcher, DenseSearcher, Searcher
        from ance_cli.retrieval.search import search as stage

        dataset = _dataset(data)
        queries = _queries(data, dataset, call.skipped)
        corpus = dataset.corpus if dataset else None
        searcher: Searcher
        if config.engine == "dense":
            if ckpt is None:
                raise UsageProblem(
                    "dense search needs --ckpt", hint="or use --engine lucene for BM25"
                )
            checkpoint = checkpoint_of(ckpt, overrides)
            rescore = vector_source(config.rescore, None) if config.rescore else None
            source = vector_source(embeddings, index)
            searcher = DenseSearcher(checkpoint, source, corpus, compute, rescore)
        elif corpus is None:
            raise UsageProblem(f"--engine {config.engine} needs --data or --corpus")
        else:
            searcher = Bm25Searcher(corpus)

        if output is None and asked.json:
            raise UsageProblem(
                "--json and the run both need stdout", hint="write the run with -o FILE"
            )
        if output is None and sys.stdout.isatty() and not call.dry_run:
            searcher.check()
            _show_hits(queries, searcher.hits(queries, config, call), corpus, call.skipped)
            return None
        found = stage(
            queries,
            output or STDIO,
            searcher,
            config,
            queries_from=dataset.files if dataset else [data.queries] if data.queries else [],
            call=call,
        )
        return None if output is None else found


def _dataset(data: DataFiles) -> Dataset | None:
    """The dataset that is searched, without queries that are typed in; None if none is named."""
    if not (data.data or data.corpus):
        return None
    return dataset_of(replace(data, queries=None) if data.queries == STDIO else data)


def _queries(
    data: DataFiles, dataset: Dataset | None, skipped: SkippedLines | None
) -> dict[str, str]:
    """query_id -> text, from stdin, the dataset or --queries."""
    from ance_cli.formats.dataset import queries_of_split, read_queries

    if data.queries == STDIO:
        return read_queries(STDIO, skipped)
    if dataset is not None:
        return queries_of_split(dataset, skipped)
    if data.queries:
        return queries_of_split(Dataset(NO_CORPUS, data.queries, data.qrels), skipped)
    raise UsageProblem(
        "there are no queries", hint="name them with --data and --split, --queries FILE, or -"
    )


def _show_hits(
    queries: dict[str, str], found: Any, corpus: Path | None, skipped: SkippedLines | None
) -> None:
    """Show readable hits on stdout: rank, score, id, title and the start of the text."""
    from rich.text import Text

    from ance_cli.cli.console import PlainConsole
    from ance_cli.retrieval.search import passages_of

    wanted = {doc_id for listed in found.values() for doc_id, _ in listed}
    passages = passages_of(corpus, wanted, skipped) if corpus else {}
    console = PlainConsole()
    for query_id, listed in found.items():
        console.print(Text(queries[query_id], style="bold"))
        for rank, (doc_id, score) in enumerate(listed, start=1):
            console.print(Text(f"{rank:3d}  {score:8.4f}  {doc_id}", style="cyan"))
            if passage := passages.get(doc_id):
                text = " ".join(passage.joined(" - ").split())
                console.print(
                    Text(f"     {text[: 2 * (console.width - 6)]}", overflow="ellipsis"),
                )
