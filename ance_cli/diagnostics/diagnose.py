"""`ance diagnose`: checks the paper's theory for a checkpoint on the user's own queries.

A sample of pairs (q, d+) is analysed twice. From the stored vectors, over the whole corpus: the
distribution of every sampler, and the exact moments of its gradient estimator if the gradient is
taken at the encodings. With the model, on drawn negatives: the true gradients of all parameters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ance_cli.call import Call
from ance_cli.config import ComputeConfig, DiagnoseConfig, shaped_by
from ance_cli.diagnostics.history import history_hash, read_history
from ance_cli.diagnostics.pair_set import PairSet, sample_pairs
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.mining.mining_data import read_mining_data
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource
from ance_cli.retrieval.search import passages_of

if TYPE_CHECKING:
    from ance_cli.diagnostics.examples import Gradients
    from ance_cli.diagnostics.pair import ExactMoments
    from ance_cli.diagnostics.pair_analysis import PairAnalysis

_SHOWN = 400
"""Characters of a suspect's text that the report holds."""
_TABLES = ("queries", "documents", "parameters", "samplers", "bound", "batch", "reciprocal_rank",
           "suspects")  # fmt: skip
"""The parts of the report that go into the summary; the other parts are curves."""


@dataclass(frozen=True)
class Subject:
    """What is diagnosed: a checkpoint, the vectors that it made of a corpus, labelled queries.

    If there is an `index`, the negatives of ANCE are what a search of the index finds. `run` adds
    the training curve, the refreshes and the churn of a run.
    """

    checkpoint: Checkpoint
    dataset: Dataset
    embeddings: Path
    index: Path | None = None
    run: Path | None = None

    def sources(self) -> list[VectorSource]:
        """The embeddings and the index; the last one is searched."""
        found = [VectorSource(self.embeddings, "embeddings")]
        return found if self.index is None else [*found, VectorSource(self.index, "index")]


def diagnose(
    subject: Subject,
    output: Path,
    config: DiagnoseConfig = DiagnoseConfig(),
    compute: ComputeConfig = ComputeConfig(),
    figures: Path | None = None,
    call: Call = Call(),
) -> Summary:
    """Write the report, a JSON object, and draw its figures into the folder `figures`.

    Raises `Mismatch` if the vectors were made by another passage encoder or of another corpus, or
    were rounded.
    """
    subject.checkpoint.need_head()
    sources = subject.sources()
    corpus_hash = hash_file(subject.dataset.corpus)
    for source in sources:
        source.check(subject.checkpoint, corpus_hash)
        source.need_floats("ance diagnose")
    if figures is not None:
        from ance_cli.diagnostics.report_figures import check_figures

        check_figures()
    plan = _plan(subject, sources, corpus_hash, output, config, compute)
    manifest = plan.published(call.force)
    if manifest is None and call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.reading(subject.embeddings), lease.of_output(output):
        if manifest is not None:
            report = orjson.loads(output.read_bytes())
            summary = summary_of(manifest, output, up_to_date=True)
        else:
            report, summary = _make(plan, subject, sources, config, compute, call)
        if figures is not None and not call.dry_run:
            from ance_cli.diagnostics.report_figures import draw_report

            summary["figures"] = draw_report(
                report, subject.checkpoint, sources[0], compute, figures, call.reporter
            )
    return summary


def _plan(
    subject: Subject,
    sources: Sequence[VectorSource],
    corpus_hash: str,
    output: Path,
    config: DiagnoseConfig,
    compute: ComputeConfig,
) -> Plan:
    checkpoint, dataset, run = subject.checkpoint, subject.dataset, subject.run
    return Plan(
        "diagnosis",
        output,
        {**shaped_by(config), "dtype": compute.dtype},
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


def _make(
    plan: Plan,
    subject: Subject,
    sources: Sequence[VectorSource],
    config: DiagnoseConfig,
    compute: ComputeConfig,
    call: Call,
) -> tuple[dict[str, Any], Summary]:
    """Analyse the sampled pairs, and write the report."""
    from ance_cli.diagnostics.corpus_analysis import analyze_pairs

    started = time.monotonic()
    pair_set = _pair_set(subject, sources, config, compute, call)
    plan.shaped_by["dtype"] = pair_set.retriever.dtype
    analyses, exact = analyze_pairs(pair_set)
    gradients, num_parameters = _differentiate(pair_set, analyses)
    settings = {"checkpoint": str(subject.checkpoint.path), "split": subject.dataset.split}
    report = {
        "settings": {**settings, **plan.shaped_by},
        "queries": len(analyses),
        "documents": pair_set.embeddings.num_docs,
        "parameters": num_parameters,
        **_tables(pair_set, analyses, exact, gradients),
    }
    if subject.run is not None:
        report["history"] = read_history(subject.run, _found_when_testing(pair_set, analyses))
    stats = {
        **{name: report[name] for name in _TABLES},
        **({"generations": report["history"]["generations"]} if subject.run else {}),
        "seconds": round(time.monotonic() - started, 2),
    }
    with plan.text_file(stats) as handle:
        handle.write(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return report, made(plan, stats)


def _pair_set(
    subject: Subject,
    sources: Sequence[VectorSource],
    config: DiagnoseConfig,
    compute: ComputeConfig,
    call: Call,
) -> PairSet:
    from ance_cli.diagnostics.corpus_scores import PairLoss

    checkpoint, dataset = subject.checkpoint, subject.dataset
    data = read_mining_data(dataset, config.ranking, call)
    retriever = DenseRetriever(checkpoint, sources[-1], compute, config.probes)
    scale = checkpoint.settings.scale if config.scale is None else config.scale
    return PairSet(
        pairs=sample_pairs(data, config),
        data=data,
        dataset=dataset,
        retriever=retriever,
        embeddings=retriever.embeddings or Embeddings(sources[0].path),
        checkpoint=checkpoint,
        loss=PairLoss(config.loss, config.margin, scale),
        config=config,
        call=call,
    )


def _differentiate(
    pair_set: PairSet, analyses: Sequence[PairAnalysis]
) -> tuple[list[Gradients], int]:
    """The true gradients of the drawn negatives, and the number of parameters."""
    from ance_cli.diagnostics.examples import ExampleGradients

    checkpoint, retriever, call = pair_set.checkpoint, pair_set.retriever, pair_set.call
    doc_ids = retriever.doc_ids
    wanted = {doc_ids[doc] for found in analyses for doc in (found.positive, *found.drawn_norms)}
    passages = passages_of(pair_set.dataset.corpus, wanted, call.skipped)
    text_of = checkpoint.settings.text_of
    examples = ExampleGradients(checkpoint, retriever.device, pair_set.loss)
    found = []
    total = sum(len(analysis.drawn_norms) for analysis in analyses)
    with call.reporter.task("differentiating", total, "negative") as bar:
        for pair, analysis in zip(pair_set.pairs, analyses, strict=True):
            negatives = {doc: text_of(passages[doc_ids[doc]]) for doc in analysis.drawn_norms}
            positive = text_of(passages[analysis.positive_id])
            found.append(examples.of(pair.text, positive, negatives, analysis.drawn, bar.advance))
    return found, examples.num_parameters


def _tables(
    pair_set: PairSet,
    analyses: Sequence[PairAnalysis],
    exact: Sequence[ExactMoments],
    gradients: Sequence[Gradients],
) -> dict[str, Any]:
    """The tables and curves of the report."""
    from ance_cli.diagnostics import report as tables

    config, data, doc_ids = pair_set.config, pair_set.data, pair_set.embeddings.ids
    suspects = tables.suspects_of(analyses, config.suspects)
    return {
        "samplers": tables.sampler_rows(analyses, exact, gradients),
        "bound": tables.bound(analyses, gradients),
        "batch": tables.batch_record(analyses, config.batch_size, config.depth),
        "reciprocal_rank": tables.reciprocal_rank_record(analyses),
        "suspects": _with_texts(suspects, pair_set),
        "long_tail": tables.tail_record(analyses, pair_set.ranks),
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


def _found_when_testing(
    pair_set: PairSet, analyses: Sequence[PairAnalysis]
) -> dict[tuple[str, str], set[str]]:
    """(query, positive) -> the negatives that the model ranks high at test time."""
    doc_ids = pair_set.embeddings.ids
    return {
        (analysis.query_id, analysis.positive_id): {doc_ids[doc] for doc in analysis.top.tolist()}
        for analysis in analyses
    }


def _with_texts(
    suspects: Sequence[tuple[PairAnalysis, int, float]], pair_set: PairSet
) -> list[dict[str, Any]]:
    """The suspects with their texts."""
    doc_ids = pair_set.embeddings.ids
    wanted = {doc_ids[doc] for _, doc, _ in suspects}
    wanted |= {analysis.positive_id for analysis, _, _ in suspects}
    passages = passages_of(pair_set.dataset.corpus, wanted, pair_set.call.skipped)
    return [
        {
            "query_id": analysis.query_id,
            "positive_id": analysis.positive_id,
            "suspect_id": doc_ids[doc],
            "above_the_positive": margin,
            "query": pair_set.data.queries[analysis.query_id],
            "positive": passages[analysis.positive_id].joined(" ")[:_SHOWN],
            "suspect": passages[doc_ids[doc]].joined(" ")[:_SHOWN],
        }
        for analysis, doc, margin in suspects
    ]
