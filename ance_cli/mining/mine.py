"""`ance mine`: negatives that the model itself ranks high, from the whole corpus.

D- = ANN_f(q, C) \\ D+ (ICLR Sec. 4, arXiv Eq. 10): encode the queries, search the embeddings
exactly or an index, remove every known positive and every copy of one, draw. A mix brings in other
sources: BM25, the corpus at random, the candidates of the model before, and the neighbours of the
positive (the last two: ANCE-Tele, Sun et al., EMNLP 2022). What they find is scored by the model,
so that samplers, filters and the audit see one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call
from ance_cli.config import ClusterConfig, MineConfig
from ance_cli.config.sets import Dtype
from ance_cli.errors import UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.candidates import Candidates, read_candidates
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.journal import Journal
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.manifest import Plan
from ance_cli.formats.negatives_file import candidates_name
from ance_cli.formats.summary import Clock, Summary, planned, summary_of
from ance_cli.mining.audit import BM25_TOP
from ance_cli.mining.candidate_filters import open_candidate_filters, teacher_inputs
from ance_cli.mining.drawing import (
    MiningData,
    all_texts,
    audit_of,
    check_scores,
    read_mining_data,
    recipe_of,
    write_negatives,
)
from ance_cli.mining.pool import Pool, RankedLists
from ance_cli.mining.rescoring import ExactScores
from ance_cli.mining.sampling import RANDOM, normalised, parse_mix
from ance_cli.mining.sources import (
    ANN,
    BM25,
    LOOKAHEAD,
    PREVIOUS,
    check_previous,
    cut,
    kept_bm25,
    neighbours,
)
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.retrieval.dense import DenseRetriever, VectorSource

if TYPE_CHECKING:
    from ance_cli.models.ray_cluster import Cluster
    from ance_cli.retrieval.exact import Found


def shares_of(config: MineConfig, exact: bool) -> dict[str, float]:
    """The shares of the mix; refuses rules on scores that its sources do not have.

    Only embeddings (`exact`) give the scores of positives and of what the search did not find.
    """
    shares = parse_mix(config.mix, (ANN, BM25, PREVIOUS, LOOKAHEAD, RANDOM))
    if exact:
        return shares
    hint = "search the embeddings themselves: --embeddings DIR in place of an index"
    recipe = recipe_of(config, shares, 0)
    for what, needs in (
        ("--sampler simans compares", recipe.sampler.needs_positive),
        ("a margin compares", recipe.filters.needs_positive),
    ):
        if needs:
            raise UsageProblem(
                f"{what} with the positive's score, which a search of an index does not give",
                hint=hint,
            )
    if LOOKAHEAD in shares:
        raise UsageProblem(
            "the source lookahead searches with the vectors of the positives, which an index does "
            "not give back",
            hint=hint,
        )
    check_scores(recipe, [source for source in shares if source != ANN], hint)
    return shares


def mine(
    checkpoint: Checkpoint,
    dataset: Dataset,
    source: VectorSource,
    output: Path,
    config: MineConfig = MineConfig(),
    compute: ClusterConfig = ClusterConfig(),
    candidates_folder: Path | None = None,
    previous: Path | None = None,
    earlier: Path | None = None,
    bm25_folder: Path | None = None,
    with_text: bool = False,
    call: Call = Call(),
) -> Summary:
    """Mine negatives for every (query, positive) pair of the split.

    Writes the negatives, their audit (`.audit.json`) and the candidates they were drawn from
    (`.candidates/`, or `candidates_folder`), from which other samplers can draw without a search.
    `previous` holds the candidates of an earlier model; without it the share of that source goes to
    the others. `bm25_folder` keeps BM25's ranking, in place of the cache folder. With
    `compute.ray` the embeddings are searched in a Ray cluster. Refuses vectors of
    another passage tower or of another corpus (`Mismatch`).
    """
    asked = shares_of(config, exact=source.kind == "embeddings")
    if compute.ray and source.kind != "embeddings":
        raise UsageProblem(
            "--ray searches embeddings, in parts; an index is one piece",
            hint="name --embeddings DIR, or leave --ray out",
        )
    corpus_hash = hash_file(dataset.corpus)
    source.check(checkpoint, corpus_hash)
    absent = [PREVIOUS] if PREVIOUS in asked and previous is None else []
    if absent == list(asked):
        raise UsageProblem(
            "--mix previous: there are no earlier candidates to draw from",
            hint="name them with --previous DIR, or mix another source in: ann:0.5,previous:0.5",
        )
    if previous is not None and PREVIOUS not in asked:
        raise UsageProblem(
            f"--previous: --mix {config.mix} does not draw from it",
            hint="give it a share: --mix ann:0.5,previous:0.5",
        )
    shares = normalised({name: share for name, share in asked.items() if name not in absent})
    folder = candidates_folder or (candidates_name(output) if output != STDIO else None)
    if previous is not None and folder is not None and previous.resolve() == folder.resolve():
        raise UsageProblem(
            f"--previous {previous}: this call's own candidates would go there",
            hint="name another folder for them with --candidates",
        )
    reads = [checkpoint.path, source.path, *dataset.files, previous, earlier, config.teacher]
    searched = Plan(
        "candidates",
        folder or output,
        {
            "depth": config.depth,
            "dtype": compute.dtype,
            "probes": config.probes,
            "min_rel": config.min_rel,
        },
        {
            "vectors": source.fingerprint,
            "query_tower": checkpoint.tower_hash("query"),
            "corpus": corpus_hash,
            "queries": hash_file(dataset.need("queries")),
            "qrels": hash_file(dataset.need("qrels")),
        },
        {"checkpoint": str(checkpoint.path)},
        reads,
    )
    shaped_by = {
        **asdict(config),
        **searched.shaped_by,
        "with_text": with_text,
        "checkpoint_step": checkpoint.settings.training_step,
    }
    del shaped_by["teacher"]  # among the inputs, by content
    plan = Plan(
        "negatives",
        output,
        shaped_by,
        {
            **searched.inputs,
            **({"previous": check_previous(previous, corpus_hash)} if previous else {}),
            **({"earlier": hash_file(earlier)} if earlier else {}),
            **teacher_inputs(config),
        },
        searched.ran_with,
        reads,
    )
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)

    def work(cluster: Cluster | None, journal: Journal) -> Summary:
        if absent and config.negatives:
            call.reporter.say(
                "there are no earlier candidates: the share of previous goes to the rest"
            )
        clock = Clock()
        with clock("read"):
            data = read_mining_data(dataset, config, call)
        model = _Model(checkpoint, source, config, compute, data, cluster, clock, call.reporter)
        wanted = set(shares) if config.negatives else set()
        bm25 = None
        if config.negatives and (BM25 in wanted or config.audit_bm25):
            with clock("bm25"):
                bm25 = kept_bm25(
                    dataset, data.queries, config, bm25_folder, len(data.duplicates.doc_ids), call,
                )  # fmt: skip
        ann = (
            _candidates(searched, folder, model, config.depth, call.force)
            if ANN in wanted
            else None
        )
        pool = _pool(wanted, model, config.depth, ann, bm25, previous)
        judging = replace(compute, dtype=cast(Dtype, model.dtype))
        candidate_filters = open_candidate_filters(
            config, judging, dataset, data.queries, journal, call
        )
        plan.shaped_by["dtype"] = candidate_filters.dtype or model.dtype
        pool = replace(
            pool, has_answer=candidate_filters.has_answer, teacher=candidate_filters.teacher
        )
        top = _top_of(bm25, data.duplicates.doc_ids) if bm25 else None
        audit = audit_of(config, shares, earlier, absent, top)
        recipe = recipe_of(config, shares, checkpoint.settings.training_step)
        texts = all_texts(dataset, call.skipped) if with_text else None
        return write_negatives(plan, pool, recipe, audit, texts, clock, call.reporter)

    from ance_cli.models.ray_cluster import joined

    in_ray = joined(compute, None, call.reporter)
    with (
        lease.reading(source.path),
        lease.of_output(output),
        plan.journal(call.force, call.reporter.say) as journal,
        in_ray as cluster,
    ):
        return work(cluster, journal)


class _Model:
    """The query encoder over the vectors; loaded, and the queries encoded, when first needed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: VectorSource,
        config: MineConfig,
        compute: ClusterConfig,
        data: MiningData,
        cluster: Cluster | None,
        clock: Clock,
        reporter: Reporter,
    ) -> None:
        self.data, self.cluster, self.clock, self.reporter = data, cluster, clock, reporter
        self.is_exact = source.kind == "embeddings"
        self.dtype: str = compute.dtype
        """As asked for, then as it is."""
        self._open: Callable[[], DenseRetriever] = lambda: DenseRetriever(
            checkpoint, source, replace(compute, dtype=cast(Dtype, self.dtype)), config.probes
        )

    @cached_property
    def retriever(self) -> DenseRetriever:
        retriever = self._open()
        self.dtype = retriever.dtype
        return retriever

    @cached_property
    def xq(self) -> npt.NDArray[np.float32]:
        """(queries, d) float32."""
        texts = list(self.data.queries.values())
        with self.clock("queries"):
            return self.retriever.encode_queries(texts, self.reporter)

    def search(self, depth: int) -> Found:
        """The documents of each query, best first; the embeddings by the cluster, if there is
        one."""
        xq = self.xq
        with self.clock("search"):
            if self.cluster and self.retriever.embeddings is not None:
                from ance_cli.retrieval.ray_search import search_in_cluster

                return search_in_cluster(
                    self.cluster, xq, self.retriever.embeddings, depth, self.reporter
                )
            return self.retriever.search(xq, depth, self.reporter)

    def positive_scores(self) -> dict[str, dict[str, float]]:
        """The exact score of each positive; empty where an index was opened."""
        from ance_cli.retrieval.exact import positive_scores

        if self.retriever.embeddings is None:
            return {}
        xq = self.xq
        with self.clock("positives"):
            return positive_scores(
                xq, list(self.data.queries), self.data.positives, self.retriever.embeddings
            )


def _pool(
    wanted: set[str],
    model: _Model,
    depth: int,
    ann: Candidates | None,
    bm25: Candidates | None,
    previous: Path | None,
) -> Pool:
    """All that the wanted sources offer, with the model's scores where embeddings give them."""
    data = model.data
    lists: dict[str, RankedLists] = {}
    if ann is not None:
        lists[ANN] = RankedLists.of(ann)
    if BM25 in wanted and bm25 is not None:
        lists[BM25] = RankedLists.of(cut(bm25, depth), scored=False)
    if PREVIOUS in wanted and previous is not None:
        kept = read_candidates(previous, len(data.duplicates.doc_ids))
        lists[PREVIOUS] = RankedLists.of(cut(kept, depth), scored=False)
    if LOOKAHEAD in wanted:  # needs embeddings, as `shares_of` has checked
        assert model.retriever.embeddings is not None
        lists[LOOKAHEAD] = neighbours(
            data.positives,
            model.retriever.embeddings,
            depth,
            model.retriever.device,
            model.reporter,
        )
    pool = Pool(
        list(data.queries),
        data.positives,
        data.duplicates,
        lists,
        ann.positive_scores if ann else {},
        scope=data.scope,
    )
    if not model.is_exact or not wanted - {ANN}:
        return pool
    assert model.retriever.embeddings is not None
    return replace(
        pool,
        positive_scores=pool.positive_scores or model.positive_scores(),
        rescore=ExactScores(model.xq, list(data.queries), model.retriever.embeddings),
    )


def _top_of(bm25: Candidates, doc_ids: Sequence[str]) -> Callable[[str], set[str]]:
    """What BM25 ranks highest for a query, for the audit."""
    lists = RankedLists.of(cut(bm25, BM25_TOP), scored=False)
    return lambda query_id: {doc_ids[doc] for doc in lists.listed(query_id)[0]}


def _candidates(
    plan: Plan, folder: Path | None, model: _Model, depth: int, force: bool
) -> Candidates:
    """The ranked documents of each query: those that lie in `folder`, or newly searched."""
    if folder is not None and (manifest := plan.published(force)):
        model.dtype = plan.shaped_by["dtype"] = manifest["shaped_by"]["dtype"]
        model.reporter.say(f"drawing from the candidates in {folder}")
        return read_candidates(folder, len(model.data.duplicates.doc_ids))
    plan.shaped_by["dtype"] = model.retriever.dtype
    scores, docs = model.search(depth)
    candidates = Candidates(list(model.data.queries), docs, scores, model.positive_scores())
    if folder is not None:
        with lease.hold(lease.lease_name(folder), str(folder)):
            partial = plan.open_partial(force=True)  # a search is one piece: nothing to continue
            with model.clock("keep"):
                content = candidates.write(partial)
                plan.publish_folder(content, {"dtype": model.retriever.dtype})
    return candidates
