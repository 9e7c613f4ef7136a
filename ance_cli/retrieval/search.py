"""`ance search`: queries to ranked documents, by a checkpoint or by BM25."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import ComputeConfig, SearchConfig
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.dataset import Passage, checked_id, read_corpus
from ance_cli.formats.hashing import hash_file, hash_lines
from ance_cli.formats.manifest import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.formats.trec import write_hits
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource

Hits = list[tuple[str, float]]


def search(
    queries: dict[str, str],
    output: Path,
    corpus: Path | None = None,
    checkpoint: Checkpoint | None = None,
    source: VectorSource | None = None,
    config: SearchConfig = SearchConfig(),
    compute: ComputeConfig = ComputeConfig(),
    queries_from: Sequence[Path] = (),
    call: Call = Call(),
) -> Summary:
    """Write a TREC run of the top `depth` documents of each query (`-` is stdout).

    Dense retrieval needs `checkpoint` and `source`; BM25 (`config.engine` lucene or bm25s) needs
    `corpus`. `queries_from` names the files that the queries were read from, which the run may not
    replace.
    """
    inputs = {"queries": hash_lines(f"{name}\t{text}" for name, text in queries.items())}
    shaped_by: dict[str, Any] = {"engine": config.engine, "depth": config.depth, "tag": config.tag}
    if checkpoint is not None and source is not None:
        source.check(checkpoint, hash_file(corpus) if corpus else None)
        inputs |= {"vectors": source.fingerprint, "query_tower": checkpoint.tower_hash("query")}
        shaped_by |= {"dtype": compute.dtype, "probes": config.probes}
    elif corpus is not None:
        inputs["corpus"] = hash_file(corpus)
        shaped_by |= {"k1": config.k1, "b": config.b}
    reads = [
        *queries_from,
        corpus,
        checkpoint.path if checkpoint else None,
        source.path if source else None,
    ]
    plan = Plan("run", output, shaped_by, inputs, reads=reads)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    def write() -> Summary:
        started = time.monotonic()
        found = hits(
            queries, corpus, checkpoint, source, config, compute, plan.shaped_by, call=call,
        )  # fmt: skip
        stats = {"queries": len(queries), "depth": config.depth}
        with plan.text_file(stats) as handle:
            for query_id, listed in found.items():
                write_hits(handle, query_id, listed, config.tag)
            stats["seconds"] = round(time.monotonic() - started, 2)  # type: ignore[assignment]
        return made(plan, stats)

    reading = lease.reading(source.path) if source is not None else nullcontext()
    with reading, lease.of_output(output):
        return write()


def hits(
    queries: dict[str, str],
    corpus: Path | None,
    checkpoint: Checkpoint | None,
    source: VectorSource | None,
    config: SearchConfig,
    compute: ComputeConfig,
    shaped_by: dict[str, object] | None = None,
    call: Call = Call(),
) -> dict[str, Hits]:
    """query_id -> [(doc_id, score)], best first; `shaped_by["dtype"]` is resolved on the way."""
    texts = list(queries.values())
    if checkpoint is not None and source is not None:
        retriever = DenseRetriever(checkpoint, source, compute, config.probes)
        if shaped_by is not None:
            shaped_by["dtype"] = retriever.dtype
        xq = retriever.encode_queries(texts, call.reporter)
        scores, docs = retriever.search(xq, config.depth, call.reporter)
        doc_ids = retriever.doc_ids
    else:
        from ance_cli.retrieval.bm25 import open_bm25

        assert corpus is not None
        bm25 = open_bm25(config.engine, corpus, config.k1, config.b, call)
        doc_ids = [passage.doc_id for passage in read_corpus(corpus, call.skipped)]
        with call.reporter.task("BM25", len(texts), "query") as bar:
            docs, scores = bm25.search(texts, config.depth, bar.advance)
    return {
        query_id: [
            (doc_ids[place], float(score))
            for place, score in zip(docs[row].tolist(), np.asarray(scores[row]), strict=True)
            if place >= 0
        ]
        for row, query_id in enumerate(queries)
    }


def queries_from_stdin() -> dict[str, str]:
    """Queries typed or piped in: plain text, `id <tab> text`, or JSON objects, one a line."""
    queries: dict[str, str] = {}
    for number, line in enumerate(sys.stdin.buffer, start=1):
        text = line.decode("utf-8", "replace").strip()
        query_id = str(number)
        if text.startswith("{"):
            try:
                record = orjson.loads(text)
                query_id = str(record.get("_id", record.get("query_id", number)))
                text = str(record["text"])
            except (orjson.JSONDecodeError, KeyError) as error:
                raise BadInput(
                    f"stdin:{number}: expected text or a JSON object with 'text' ({error})"
                ) from error
        elif "\t" in text:
            query_id, text = text.split("\t", 1)
        if not text:
            continue
        checked_id(query_id, f"stdin:{number}")
        if query_id in queries:
            raise BadInput(f"stdin:{number}: query id {query_id!r} was used before")
        queries[query_id] = text
    if not queries:
        raise BadInput(
            "stdin: there is no query in it", hint="for instance: echo 'a question' | ance search"
        )
    return queries


def passages_of(
    corpus: Path, doc_ids: set[str], skipped: SkippedLines | None = None
) -> dict[str, Passage]:
    """The passages with these ids, to show beside a hit."""
    passages = read_corpus(corpus, skipped)
    return {passage.doc_id: passage for passage in passages if passage.doc_id in doc_ids}
