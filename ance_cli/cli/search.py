"""`ance search`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ance_cli.call import Call, SkippedLines
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import ComputeConfig, SearchConfig
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt, DataFiles, Embeddings, EncodingOverrides, Index, Output
from ance_cli.config.retrieval import Questions
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import NO_CORPUS, Dataset, Passage
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary

if TYPE_CHECKING:
    from ance_cli.retrieval.search import Hits


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "search", "Stages", takes=(*COMMON, "force", *LOADS, *READS))
    def search(
        call: Call,
        asked: CallSettings,
        *,
        questions: Questions | None = None,
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

        Queries are the questions in the command, or come from the split, from --queries FILE, or
        with `--queries -` from stdin, one per line. Without -o, a terminal shows the hits with
        their texts, --json prints them, and a pipe gets a TREC run.

        Example: `ance search "what causes gout" --ckpt runs/ance/best --embeddings emb/ --data
        data/medquad --depth 5`
        """
        from ance_cli.retrieval.dense import vector_source
        from ance_cli.retrieval.search import Bm25Searcher, DenseSearcher, Searcher
        from ance_cli.retrieval.search import search as stage

        dataset = _dataset(data)
        queries = _queries(questions, data, dataset, call.skipped)
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

        if output is None and not call.dry_run and (asked.json or sys.stdout.isatty()):
            searcher.check()
            with searcher.reading():
                hits = searcher.hits(queries, config, call)
            answers = _with_texts(queries, hits, corpus, call.skipped)
            if asked.json:
                return {"queries": answers}
            _show_hits(answers)
            return None
        found = stage(
            queries,
            output or STDIO,
            searcher,
            config,
            queries_from=dataset.files if dataset else [data.queries] if data.queries else [],
            call=call,
        )
        return found if output or asked.json else None


def _dataset(data: DataFiles) -> Dataset | None:
    """The dataset that is searched, without queries that are typed in; None if none is named."""
    if not (data.data or data.corpus):
        return None
    return dataset_of(replace(data, queries=None) if data.queries == STDIO else data)


def _queries(
    questions: list[str] | None,
    data: DataFiles,
    dataset: Dataset | None,
    skipped: SkippedLines | None,
) -> dict[str, str]:
    """query_id -> text, from the command itself, stdin, the dataset or --queries."""
    from ance_cli.formats.dataset import queries_of_split, read_queries

    if questions:
        return _numbered(questions, data)
    if data.queries == STDIO:
        return read_queries(STDIO, skipped)
    if dataset is not None:
        return queries_of_split(dataset, skipped)
    if data.queries:
        return queries_of_split(Dataset(NO_CORPUS, data.queries, data.qrels), skipped)
    raise UsageProblem(
        "there are no queries",
        hint='ask "a question", or name queries with --data and --split, --queries FILE, or -',
    )


def _numbered(questions: list[str], data: DataFiles) -> dict[str, str]:
    """Number -> question."""
    if data.queries or data.split or data.qrels:
        raise UsageProblem(
            "the queries are either the questions in the command, or those of --queries, --split "
            "or --qrels",
            hint="leave out the questions or the flag",
        )
    if not all(map(str.strip, questions)):
        raise UsageProblem("a question is empty", hint='write it as "a question"')
    return {str(number): text.strip() for number, text in enumerate(questions, start=1)}


def _with_texts(
    queries: dict[str, str],
    found: dict[str, Hits],
    corpus: Path | None,
    skipped: SkippedLines | None,
) -> list[dict[str, Any]]:
    """One record per query, with its hits; their titles and texts are None without a corpus."""
    from ance_cli.retrieval.search import passages_of

    wanted = {doc_id for listed in found.values() for doc_id, _ in listed}
    passages = passages_of(corpus, wanted, skipped) if corpus else {}

    def hit(rank: int, doc_id: str, score: float) -> dict[str, Any]:
        passage = passages.get(doc_id)
        title, text = (passage.title, passage.text) if passage else (None, None)
        return {"rank": rank, "doc_id": doc_id, "score": score, "title": title, "text": text}

    return [
        {
            "query_id": query_id,
            "text": queries[query_id],
            "hits": [hit(rank, *each) for rank, each in enumerate(listed, start=1)],
        }
        for query_id, listed in found.items()
    ]


def _show_hits(answers: list[dict[str, Any]]) -> None:
    """Show readable hits on stdout: rank, score, id, title and the start of the text."""
    from rich.text import Text

    from ance_cli.cli.console import PlainConsole

    console = PlainConsole()
    for answer in answers:
        console.print(Text(answer["text"], style="bold"))
        for hit in answer["hits"]:
            line = "{rank:3d}  {score:8.4f}  {doc_id}".format_map(hit)
            console.print(Text(line, style="cyan"))
            if hit["text"] is not None:
                passage = Passage(hit["doc_id"], hit["title"], hit["text"])
                text = " ".join(passage.joined(" - ").split())
                console.print(
                    Text(f"     {text[: 2 * (console.width - 6)]}", overflow="ellipsis"),
                )
