"""`ance search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from ance_cli.call import Call, SkippedLines
from ance_cli.cli.flags import FLAGS, Flag, SearchEngine
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import COMMON, ENCODING_SETTINGS, checkpoint_of, dataset_of, run_stage
from ance_cli.config import EncodeConfig, SearchConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary

FLAGS["search_engine"] = Flag(
    SearchEngine, "dense is the checkpoint; lucene and bm25s are BM25.", "Method", ("--engine",)
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "search",
        "ckpt data split corpus queries qrels skip_bad embeddings index output search_engine depth "
        f"k1 b probes tag {ENCODING_SETTINGS} gpus dtype batch_tokens threads force {COMMON}",
        configs="search encode",
        panel="Stages",
    )
    def search(flags: Flags) -> None:
        """Rank documents for queries, to a TREC run or to readable hits.

        Queries come from the split, from --queries FILE, or with `--queries -` from stdin, one a
        line. Without -o the hits are shown with their texts on a terminal, and are a TREC run in a
        pipe.

        Example: `echo "what causes gout" | ance search --ckpt runs/ance/latest --embeddings emb/
        --data data/medquad --queries - --depth 5`
        """
        run_stage(flags, lambda call: _search(flags, call))


def _search(flags: Flags, call: Call) -> Summary:
    from ance_cli.retrieval.dense import vector_source
    from ance_cli.retrieval.search import hits, queries_from_stdin, queries_of_split
    from ance_cli.retrieval.search import search as stage

    config = SearchConfig(
        flags.search_engine or "dense", flags.depth, flags.k1, flags.b, flags.probes, flags.tag
    )
    typed_in = flags.queries == STDIO
    dataset: Dataset | None = None
    if flags.data or flags.corpus:
        located = Flags({**flags, "queries": None} if typed_in else dict(flags), set())
        dataset = dataset_of(located)
    if typed_in:
        queries = queries_from_stdin()
    elif dataset is not None:
        queries = queries_of_split(dataset, call.skipped)
    elif flags.queries:
        queries = queries_of_split(Dataset(Path(), flags.queries, flags.qrels), call.skipped)
    else:
        raise UsageProblem(
            "there are no queries", hint="name them with --data and --split, --queries FILE, or -"
        )
    checkpoint = source = None
    if config.engine == "dense":
        if flags.ckpt is None:
            raise UsageProblem("dense search needs --ckpt", hint="or use --engine lucene for BM25")
        checkpoint = checkpoint_of(flags)
        source = vector_source(flags.embeddings, flags.index)
    elif dataset is None:
        raise UsageProblem(f"--engine {config.engine} needs --data or --corpus")
    corpus = dataset.corpus if dataset else None
    encode_config = flags.config(EncodeConfig)

    if flags.output is None and flags.json:
        raise UsageProblem("--json and the run both want stdout", hint="write the run with -o FILE")
    if flags.output is None and sys.stdout.isatty() and not flags.dry_run:
        if source is not None and checkpoint is not None:
            from ance_cli.formats.hashing import hash_file

            source.check(checkpoint, hash_file(corpus) if corpus else None)
        ranked = hits(queries, corpus, checkpoint, source, config, encode_config, call=call)
        _show_hits(queries, ranked, corpus, call.skipped)
        return {}
    found = stage(
        queries,
        flags.output or STDIO,
        corpus,
        checkpoint,
        source,
        config,
        encode_config,
        queries_from=dataset.files if dataset else [flags.queries],
        call=call,
    )
    return {} if flags.output is None else found


def _show_hits(
    queries: dict[str, str], found: Any, corpus: Path | None, skipped: SkippedLines | None
) -> None:
    """Readable hits on stdout: rank, score, id, title and the beginning of the text."""
    from rich.console import Console
    from rich.text import Text

    from ance_cli.retrieval.search import passages_of

    wanted = {doc_id for listed in found.values() for doc_id, _ in listed}
    passages = passages_of(corpus, wanted, skipped) if corpus else {}
    console = Console(highlight=False)
    for query_id, listed in found.items():
        console.print(Text(queries[query_id], style="bold"))
        for rank, (doc_id, score) in enumerate(listed, start=1):
            console.print(Text(f"{rank:3d}  {score:8.4f}  {doc_id}", style="cyan"))
            if passage := passages.get(doc_id):
                text = " ".join(passage.joined(" - ").split())
                console.print(
                    Text(f"     {text[: 2 * (console.width - 6)]}", overflow="ellipsis"),
                )
