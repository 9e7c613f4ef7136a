"""`ance generate-queries`: a dataset whose queries a model wrote for passages without labels.

The queries are journaled passage by passage, so a repeated call does not ask for them again. Then
the round trip removes those queries whose passage a retriever does not find.
"""

from __future__ import annotations

import heapq
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import xxhash

from ance_cli.call import Call
from ance_cli.config import DeviceConfig, QueryConfig, SearchConfig, shaped_by
from ance_cli.errors import BadInput
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset, Passage, read_corpus
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.journal import Journal
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.merged import read_shares, write_shares
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.query_generation.endpoint import Endpoint
from ance_cli.query_generation.local_model import LocalModel
from ance_cli.query_generation.pool import QueryPool
from ance_cli.query_generation.writing import Source, Writer, Written
from ance_cli.retrieval.search import Searcher


def generate_queries(
    dataset: Dataset,
    output: Path,
    config: QueryConfig,
    searcher: Searcher | None = None,
    device: DeviceConfig = DeviceConfig(),
    call: Call = Call(),
) -> Summary:
    """Write a dataset folder with the corpus of `dataset`, queries for its passages and labels.

    Each query has its passage as positive; a text that was written for several passages is one
    query with all of them. `searcher` makes the round trip (None: every query is kept). Raises
    `BadInput` if no query is left.
    """
    refuse_stdio(output, "a dataset folder")
    if searcher:
        searcher.check()
    source: Source = (
        Endpoint(config, skips_refused=call.skipped is not None)
        if config.endpoint
        else LocalModel(config, device)
    )
    shares = read_shares(dataset)
    plan = _plan(dataset, output, config, source, searcher, shares)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    # other settings of the round trip may follow an interrupted call: the queries are the same
    drafts = Plan(plan.kind, output, _shaping(config, source), _inputs(dataset, source))
    started = time.monotonic()
    with (
        lease.of_output(output),
        searcher.reading() if searcher else nullcontext(),
        drafts.journal(call.force, call.reporter.say) as journal,
    ):
        drawn, without_text = _drawn(dataset.corpus, config, call)
        writer = source.open()
        drafts.shaped_by |= source.shaping
        plan.shaped_by |= source.shaping
        pool = QueryPool()
        for passage, written in _written(dataset.corpus, drawn, writer, journal, call):
            pool.add(passage.doc_id, written)
        del writer  # the searcher needs its memory
        pool.warn_of_missing(call.reporter)
        if searcher:
            pool.keep_found(searcher.hits(pool.queries, _search_config(config), call))
            plan.shaped_by |= searcher.shaping
        stats: dict[str, Any] = {"passages_without_text": without_text, **pool.stats}
        if not stats["queries"]:
            raise BadInput(
                f"no query is left: {', '.join(f'{name} {n}' for name, n in stats.items())}",
                hint="try another --prompt or --model, or another --round-trip-depth",
            )
        with plan.new_partial() as folder:
            shutil.copyfile(dataset.corpus, folder / _corpus_name(dataset.corpus))
            if shares:
                write_shares(folder, shares)
            pool.write(folder, config.split)
        stats["seconds"] = round(time.monotonic() - started + journal.seconds_before, 2)
        manifest = plan.publish_folder({}, stats)
    return summary_of(manifest, output, up_to_date=False)


def _shaping(config: QueryConfig, source: Source) -> dict[str, Any]:
    settings = {name: value for name, value in shaped_by(config).items() if value is not None}
    del settings["round_trip_depth"]
    return settings | source.shaping


def _inputs(dataset: Dataset, source: Source) -> dict[str, str]:
    return {"corpus": hash_file(dataset.corpus), **source.inputs}


def _plan(
    dataset: Dataset,
    output: Path,
    config: QueryConfig,
    source: Source,
    searcher: Searcher | None,
    shares: Mapping[str, float] | None,
) -> Plan:
    settings, inputs = _shaping(config, source), _inputs(dataset, source)
    settings["round_trip_depth"] = config.round_trip_depth
    if shares:
        inputs["shares"] = hash_json(shares)
    if searcher:
        settings |= {"engine": config.retriever, **searcher.shaping}
        inputs |= searcher.inputs
    return Plan(
        "dataset", output, settings, inputs,
        ran_with={"model": config.model},
        reads=[dataset.corpus, *source.reads, *(searcher.reads if searcher else ())],
    )  # fmt: skip


def _corpus_name(corpus: Path) -> str:
    """The name of the corpus in the output: the same bytes, so that embeddings still fit it."""
    ending = corpus.suffix if corpus.suffix in (".gz", ".zst") else ""
    return f"corpus.jsonl{ending}"


def _search_config(config: QueryConfig) -> SearchConfig:
    assert config.retriever is not None
    return SearchConfig(engine=config.retriever, depth=config.round_trip_depth)


# ---------------------------------------------------------------- writing


def _drawn(corpus: Path, config: QueryConfig, call: Call) -> tuple[set[str], int]:
    """The ids of the passages that get queries, and the number of passages without a text.

    A draw takes the passages whose hashes with the seed are smallest, so a larger sample contains
    a smaller one, and the order of the corpus does not matter.
    """
    doc_ids, without_text = [], 0
    for passage in read_corpus(corpus, call.skipped):
        if passage.joined(" ").strip():
            doc_ids.append(passage.doc_id)
        else:
            without_text += 1
    if not doc_ids:
        raise BadInput(f"{corpus}: no passage has a text", hint="check the corpus")
    if config.sample is None:
        return set(doc_ids), without_text
    if config.sample > len(doc_ids):
        call.reporter.warn(
            f"--sample {config.sample}: the corpus has only {len(doc_ids)} passages with a text"
        )
    ranked = heapq.nsmallest(config.sample, doc_ids, lambda doc_id: _rank(config.seed, doc_id))
    return set(ranked), without_text


def _rank(seed: int, doc_id: str) -> int:
    return int(xxhash.xxh3_128_intdigest(f"{seed}\t{doc_id}".encode()))


def _written(
    corpus: Path, drawn: set[str], writer: Writer, journal: Journal, call: Call
) -> Iterator[tuple[Passage, Written]]:
    """The drawn passages in the order of the corpus, each with what was written for it."""
    passages = (passage for passage in read_corpus(corpus, call.skipped) if passage.doc_id in drawn)
    with call.reporter.task("writing queries", len(drawn), "passage") as bar:
        while batch := list(islice(passages, writer.batch)):
            missing = _Missing(writer, batch)
            for place, passage in enumerate(batch):
                record = journal.result(passage.doc_id.encode(), partial(missing.record, place))
                yield passage, Written(**orjson.loads(record))
                bar.advance()


class _Missing:
    """The records of a batch that the journal lacks; the writer begins at the first of them."""

    def __init__(self, writer: Writer, batch: Sequence[Passage]) -> None:
        self._writer, self._batch = writer, batch
        self._written: Iterator[Written] | None = None

    def record(self, place: int) -> bytes:
        """The record of the passage at `place`; from the first one on, they are asked in order."""
        if self._written is None:
            self._written = self._writer(self._batch, place)
        return orjson.dumps(next(self._written))
