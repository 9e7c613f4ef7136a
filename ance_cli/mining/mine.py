"""`ance mine`: negatives that the model itself ranks high, from the whole corpus.

D- = ANN_f(q, C) \\ D+ (ICLR Sec. 4, arXiv Eq. 10): encode the queries, search the embeddings
exactly or an index, remove every known positive and every copy of one, and draw. A mix adds other
sources: BM25, the corpus at random, the candidates of the previous model, and the neighbours of the
positive (the last two: ANCE-Tele, Sun et al., EMNLP 2022). The model scores what these sources
find, so that samplers, filters and the audit use one scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ance_cli.call import Call
from ance_cli.config import DriverConfig, MineConfig
from ance_cli.config.sets import Dtype
from ance_cli.formats import lease
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.journal import Journal
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Clock, Summary
from ance_cli.mining.mining_data import all_texts, read_mining_data
from ance_cli.mining.mining_job import MiningFiles, MiningJob
from ance_cli.mining.mix import ANN, BM25, Mix
from ance_cli.mining.negatives_output import new_audit, nothing_to_write, write_negatives
from ance_cli.mining.pool import Pool
from ance_cli.mining.query_model import QueryModel
from ance_cli.mining.selection import Draw
from ance_cli.mining.sources import SOURCES, Rankings
from ance_cli.mining.text_filters import CandidateFilters, open_candidate_filters
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import need_local_gpus
from ance_cli.retrieval.dense import VectorSource

if TYPE_CHECKING:
    from ance_cli.models.ray_cluster import Cluster


def mine(
    checkpoint: Checkpoint,
    dataset: Dataset,
    vectors: VectorSource,
    files: MiningFiles,
    config: MineConfig = MineConfig(),
    compute: DriverConfig = DriverConfig(),
    call: Call = Call(),
) -> Summary:
    """Mine negatives for every (query, positive) pair of the split.

    Writes the negatives, their audit (`.audit.json`), and the candidates that they were drawn from
    (`.candidates/`, or `files.candidates`), so that a later call with another sampler need not
    search again. Without `files.previous` the other sources share the part of the source
    `previous`. With `compute.ray`, a Ray cluster searches the embeddings; queries are encoded, and
    the teacher scores, on `compute.local`.

    Raises `Mismatch` if the vectors come from another passage tower or another corpus.
    """
    need_local_gpus(compute.local_gpus)
    job = MiningJob(checkpoint, dataset, vectors, files, config, compute, call)
    mix = job.checked_mix()
    searched, plan = job.plans()
    if summary := nothing_to_write(plan, call):
        return summary
    with _at_work(job, plan) as (journal, cluster):
        return _mine(job, mix, searched, plan, journal, cluster)


@contextmanager
def _at_work(job: MiningJob, plan: Plan) -> Iterator[tuple[Journal, Cluster | None]]:
    """Hold the leases, the journal and the Ray cluster of a job."""
    from ance_cli.models.ray_cluster import joined

    compute, call = job.compute, job.call
    in_ray = joined(compute, None, call.reporter)
    with (
        lease.reading(job.vectors.path),
        lease.of_output(plan.output),
        plan.journal(call.force, call.reporter.say) as journal,
        in_ray as cluster,
    ):
        yield journal, cluster


def _mine(
    job: MiningJob, mix: Mix, searched: Plan, plan: Plan, journal: Journal, cluster: Cluster | None
) -> Summary:
    """Read, search, pool, draw and write."""
    config, call, clock = job.config, job.call, Clock()
    if mix.absent and config.negatives:
        call.reporter.say(
            "there are no earlier candidates: the other sources share the part of previous"
        )
    with clock("read"):
        data = read_mining_data(job.dataset, config, call)
    model = QueryModel(job, data, cluster, clock)
    rankings = Rankings(job, searched, data, model, clock)
    with_bm25 = config.negatives > 0 and (BM25 in mix.shares or config.audit_bm25)
    audit = new_audit(config, mix, job.files, rankings.bm25_top() if with_bm25 else None)
    pool = _pool(mix, rankings)
    filters = _filters(rankings, journal)
    plan.shaped_by["dtype"] = filters.dtype or model.dtype
    pool = replace(pool, has_answer=filters.has_answer, teacher=filters.teacher)
    draw = Draw(config, mix.shares, job.checkpoint.settings.training_step)
    texts = all_texts(job.dataset, call.skipped) if job.files.with_text else None
    summary = write_negatives(plan, pool, draw, audit, texts, clock, call.reporter)
    filters.say_cut(call.reporter)
    return summary


def _pool(mix: Mix, rankings: Rankings) -> Pool:
    """Everything that the sources offer, with the model's scores if it searches embeddings."""
    data, model = rankings.data, rankings.model
    wanted = set(mix.shares) if rankings.job.config.negatives else set()
    lists = {source: ranked(rankings) for source, ranked in SOURCES.items() if source in wanted}
    rescores = rankings.job.is_exact and bool(wanted - {ANN})
    if ANN in wanted:
        positive_scores = rankings.ann.positive_scores
    else:
        positive_scores = model.positive_scores if rescores else {}
    return Pool(
        list(data.queries),
        data.positives,
        data.duplicates,
        lists,
        positive_scores,
        rescore=model.exact_scores() if rescores else None,
        scope=data.scope,
    )


def _filters(rankings: Rankings, journal: Journal) -> CandidateFilters:
    """The answer test and the teacher; the teacher runs in the model's number format."""
    job, model = rankings.job, rankings.model
    compute = replace(job.compute.local, dtype=cast(Dtype, model.dtype))
    return open_candidate_filters(
        job.config, compute, job.dataset, rankings.data.queries, journal, job.call
    )
