"""`ance diagnose`: what the paper's theory says of a checkpoint on the user's own queries.

A sample of pairs (q, d+) is looked at twice. Over the whole corpus, from the stored vectors: every
sampler's distribution, and the exact moments of its gradient estimator where the gradient is taken
at the encodings. On drawn negatives, with the model: the true gradients of all parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ance_cli.call import Call, SkippedLines
from ance_cli.config import ComputeConfig, DiagnoseConfig
from ance_cli.diagnostics.history import history_hash, read_history
from ance_cli.errors import UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.manifest import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.mining.bm25_rankings import search_bm25
from ance_cli.mining.mining_data import MiningData, read_mining_data
from ance_cli.mining.pool import RankedLists
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource
from ance_cli.retrieval.search import passages_of

_CORPUS_BYTES = 2 << 30
"""Memory for arrays over the corpus: pairs are looked at in groups that fit."""
_SHOWN = 400
"""Characters of a suspect's text that the report holds."""
_TABLES = ("queries", "documents", "parameters", "samplers", "bound", "batch", "reciprocal_rank",
           "suspects")  # fmt: skip
"""The parts of the report that go into the summary; the rest are curves."""

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """The sampled pairs: queries with one positive each."""

    query_ids: list[str]
    texts: list[str]
    positive_ids: list[str]
    positives: list[int]
    """Their positions in the corpus."""


def diagnose(
    checkpoint: Checkpoint,
    dataset: Dataset,
    vectors: Path,
    output: Path,
    config: DiagnoseConfig = DiagnoseConfig(),
    compute: ComputeConfig = ComputeConfig(),
    index: Path | None = None,
    run: Path | None = None,
    figures: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Write the report, a JSON object, and draw it into the folder `figures`.

    `vectors` are the embeddings of the corpus; with `index` ANCE's negatives are what that finds.
    `run` adds the training curve, the refreshes and the churn of a run. Refuses vectors of another
    passage tower or of another corpus (`Mismatch`).
    """
    checkpoint.need_head()
    sources = [VectorSource(vectors, "embeddings")]
    if index is not None:
        sources.append(VectorSource(index, "index"))
    corpus_hash = hash_file(dataset.corpus)
    for source in sources:
        source.check(checkpoint, corpus_hash)
    if figures is not None:
        from ance_cli.diagnostics.report_figures import check_figures

        check_figures()
    plan = Plan(
        "diagnosis",
        output,
        {**asdict(config), "dtype": compute.dtype},
        {
            "corpus": corpus_hash,
            "queries": hash_file(dataset.need("queries")),
            "qrels": hash_file(dataset.need("qrels")),
            **{source.kind: source.fingerprint for source in sources},
            "query_tower": checkpoint.tower_hash("query"),
            "passage_tower": checkpoint.tower_hash("passage"),
            **({"run": history_hash(run)} if run else {}),
        },
        {"checkpoint": str(checkpoint.path), "split": dataset.split},
    )
    manifest = plan.published(call.force)
    if manifest is None and call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    def work() -> Summary:
        if manifest is not None:
            report = orjson.loads(output.read_bytes())
            summary = summary_of(manifest, output, up_to_date=True)
        else:
            report, summary = _make(
                plan, checkpoint, dataset, sources, config, compute, run, call,
            )  # fmt: skip
        if figures is not None and not call.dry_run:
            from ance_cli.diagnostics.report_figures import draw_report

            summary["figures"] = draw_report(
                report, checkpoint, sources[0], compute, figures, call.reporter
            )
        return summary

    with lease.reading(vectors), lease.of_output(output):
        return work()


def _make(
    plan: Plan,
    checkpoint: Checkpoint,
    dataset: Dataset,
    sources: Sequence[VectorSource],
    config: DiagnoseConfig,
    compute: ComputeConfig,
    run: Path | None,
    call: Call,
) -> tuple[dict[str, Any], Summary]:
    """Look, differentiate, write."""
    from ance_cli.diagnostics import report as tables
    from ance_cli.diagnostics.pair_analysis import ranks_to_show

    started = time.monotonic()
    data = read_mining_data(dataset, config.ranking, call)
    chosen = _choose(data, config)
    retriever = DenseRetriever(checkpoint, sources[-1], compute, config.probes)
    plan.shaped_by["dtype"] = retriever.dtype
    embeddings = retriever.embeddings or Embeddings(sources[0].path)
    scale = checkpoint.settings.scale if config.scale is None else config.scale
    loss = (config.loss, config.margin, scale)
    ranks = ranks_to_show(embeddings.num_docs, config.depth)
    analyses, exact = _survey(
        data, chosen, retriever, embeddings, config, loss, ranks, dataset, call,
    )  # fmt: skip
    gradients, num_parameters = _differentiate(
        checkpoint, dataset, chosen, analyses, loss, retriever, call
    )
    suspects = tables.suspects_of(analyses, config.suspects)
    doc_ids = embeddings.ids
    report: dict[str, Any] = {
        "settings": {"checkpoint": str(checkpoint.path), "split": dataset.split, **plan.shaped_by},
        "queries": len(analyses),
        "documents": embeddings.num_docs,
        "parameters": num_parameters,
        "samplers": tables.sampler_rows(analyses, exact, gradients),
        "bound": tables.bound(analyses, gradients),
        "batch": tables.batch_record(analyses, config.batch_size, config.depth),
        "reciprocal_rank": tables.reciprocal_rank_record(analyses),
        "suspects": _with_texts(suspects, chosen, doc_ids, dataset, call.skipped),
        "long_tail": tables.tail_record(analyses, ranks),
        "panels": [
            {
                "panel": panel,
                "query_id": analysis.query_id,
                "query": data.queries[analysis.query_id],
                "positives": data.positives[analysis.query_id],
                "model": [doc_ids[doc] for doc in analysis.top.tolist()],
                "bm25": [doc_ids[doc] for doc in analysis.bm25.tolist()],
            }
            for panel, analysis in tables.panels_of(analyses)
        ],
    }
    if run is not None:
        met = {
            (analysis.query_id, analysis.positive_id): {
                doc_ids[doc] for doc in analysis.top.tolist()
            }
            for analysis in analyses
        }
        report["history"] = read_history(run, met)
    stats = {
        **{name: report[name] for name in _TABLES},
        **({"generations": report["history"]["generations"]} if run else {}),
        "seconds": round(time.monotonic() - started, 2),
    }
    with plan.text_file(stats) as handle:
        handle.write(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return report, made(plan, stats)


def _choose(data: MiningData, config: DiagnoseConfig) -> Chosen:
    """The queries, uniformly, and one positive of each; a function of the seed and the labels."""
    rng = keyed_generator(config.seed, "diagnose")
    names = list(data.queries)
    places = np.sort(rng.choice(len(names), min(config.sample, len(names)), replace=False))
    query_ids = [names[place] for place in places.tolist()]
    positive_ids = [
        data.positives[name][int(rng.integers(len(data.positives[name])))] for name in query_ids
    ]
    return Chosen(
        query_ids,
        [data.queries[name] for name in query_ids],
        positive_ids,
        [data.duplicates.position[name] for name in positive_ids],
    )


def _banned(data: MiningData, query_id: str) -> set[int]:
    """Positions of D+ and of the copies of D+."""
    own, same = data.duplicates.banned(data.positives[query_id])
    return own | same


def _negatives_of(data: MiningData, query_id: str, banned: set[int]) -> Positions:
    """Positions of C \\ D+, without copies of D+ and without other datasets' documents."""
    left = np.ones(len(data.duplicates.doc_ids), bool)
    left[list(banned)] = False
    if data.scope is not None:
        left &= ~data.scope.foreign(query_id, np.arange(len(left)))
    if not left.any():
        raise UsageProblem(
            f"query {query_id!r}: every document is a positive or a copy of one: there is no "
            "negative to look at"
        )
    return np.flatnonzero(left)


def _survey(
    data: MiningData,
    chosen: Chosen,
    retriever: DenseRetriever,
    embeddings: Embeddings,
    config: DiagnoseConfig,
    loss: tuple[str, float, float],
    ranks: Positions,
    dataset: Dataset,
    call: Call,
) -> tuple[list[Any], list[Any]]:
    """Each pair over the whole corpus: its analysis, and the exact moments of its samplers."""
    from ance_cli.diagnostics.corpus_scores import BYTES_A_DOCUMENT, compute, weighted_sums
    from ance_cli.diagnostics.pair import ANCE, BM25, Enumeration, Pair
    from ance_cli.diagnostics.pair_analysis import analyze

    banned = [_banned(data, query_id) for query_id in chosen.query_ids]
    depth = min(config.depth + max(map(len, banned)), embeddings.num_docs)
    xq = retriever.encode_queries(chosen.texts, call.reporter)
    texts = dict(zip(chosen.query_ids, chosen.texts, strict=True))
    lists = {BM25: RankedLists.of(search_bm25(
        dataset, texts, config.ranking, depth, call))}  # fmt: skip
    if retriever.embeddings is None:
        _, found = retriever.search(xq, depth, call.reporter)
        rows = {query_id: row for row, query_id in enumerate(chosen.query_ids)}
        lists[ANCE] = RankedLists(found, None, rows)
    in_batch = np.array(
        [data.duplicates.position[name] for names in data.positives.values() for name in names]
    )
    analyses, exact = [], []
    size = max(1, _CORPUS_BYTES // (BYTES_A_DOCUMENT * embeddings.num_docs))
    with call.reporter.task("looking", len(xq), "pair") as bar:
        for group in _groups(len(xq), size):
            land = compute(xq[group], chosen.positives[group], embeddings)
            sums = []
            for number, place in enumerate(range(len(xq))[group]):
                query_id = chosen.query_ids[place]
                listed = {kind: ranked.listed(query_id)[0] for kind, ranked in lists.items()}
                negatives = _negatives_of(data, query_id, banned[place])
                pair = Pair.of(
                    number, land, negatives, chosen.positives[place], listed, config.depth,
                    config.batch_size, loss,
                )  # fmt: skip
                analyses.append(
                    analyze(
                        pair, query_id, chosen.positive_ids[place], chosen.positives[place],
                        listed[BM25], in_batch, ranks, config.depth, config.draws,
                        config.batch_size, config.seed,
                    )
                )  # fmt: skip
                sums.append(Enumeration(pair, embeddings.num_docs))
                bar.advance()
            weights = np.concatenate([enumeration.weights for enumeration in sums])
            pair_of = [number for number, each in enumerate(sums) for _ in each.weights]
            vectors = weighted_sums(weights, pair_of, land.xq, embeddings)
            for number, enumeration in enumerate(sums):
                own = vectors[np.array(pair_of) == number]
                query = land.xq[number]
                exact.append(enumeration.moments(own, land.positives[number], float(query @ query)))
    return analyses, exact


def _groups(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _differentiate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    chosen: Chosen,
    analyses: Sequence[Any],
    loss: tuple[str, float, float],
    retriever: DenseRetriever,
    call: Call,
) -> tuple[list[Any], int]:
    """The true gradients of what was drawn, and the number of parameters."""
    from ance_cli.diagnostics.examples import ExampleGradients
    from ance_cli.diagnostics.pair import ORACLE

    doc_ids = retriever.doc_ids
    wanted = {doc_ids[doc] for found in analyses for doc in (found.positive, *found.drawn_norms)}
    passages = passages_of(dataset.corpus, wanted, call.skipped)
    separator = checkpoint.settings.separator
    examples = ExampleGradients(checkpoint, retriever.device, *loss)
    found = []
    total = sum(len(analysis.drawn_norms) for analysis in analyses)
    with call.reporter.task("differentiating", total, "negative") as bar:
        for text, analysis in zip(chosen.texts, analyses, strict=True):
            negatives = {
                doc: passages[doc_ids[doc]].joined(separator) for doc in analysis.drawn_norms
            }
            positive = passages[analysis.positive_id].joined(separator)
            found.append(
                examples.of(
                    text,
                    positive,
                    negatives,
                    analysis.draws[ORACLE],
                    analysis.densities,
                    bar.advance,
                )
            )
    return found, examples.num_parameters


def _with_texts(
    suspects: Sequence[tuple[Any, int, float]],
    chosen: Chosen,
    doc_ids: Sequence[str],
    dataset: Dataset,
    skipped: SkippedLines | None,
) -> list[dict[str, Any]]:
    """The suspects as people read them."""
    wanted = {doc_ids[doc] for _, doc, _ in suspects}
    wanted |= {analysis.positive_id for analysis, _, _ in suspects}
    passages = passages_of(dataset.corpus, wanted, skipped)
    texts = dict(zip(chosen.query_ids, chosen.texts, strict=True))
    return [
        {
            "query_id": analysis.query_id,
            "positive_id": analysis.positive_id,
            "suspect_id": doc_ids[doc],
            "above_the_positive": margin,
            "query": texts[analysis.query_id],
            "positive": passages[analysis.positive_id].joined(" ")[:_SHOWN],
            "suspect": passages[doc_ids[doc]].joined(" ")[:_SHOWN],
        }
        for analysis, doc, margin in suspects
    ]
