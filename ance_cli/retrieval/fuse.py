"""`ance fuse`: one run out of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import FuseConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats import lease
from ance_cli.formats.hashing import hash_lines
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, planned, summary_of
from ance_cli.formats.trec import Run, in_trec_order, read_run, write_hits

_DECIMALS = 9
"""At a depth of 1,000, the reciprocal ranks 1/1060 and 1/1061 agree in the first six decimals."""


def fuse(
    runs: list[Path],
    output: Path,
    config: FuseConfig = FuseConfig(),
    call: Call = Call(),
) -> Summary:
    """Write a run of the `depth` best documents of each query that is in any of the runs."""
    from ance_cli.retrieval.fusion import reciprocal_ranks, weighted_sum

    if len(runs) < 2:
        raise UsageProblem("fusing needs at least two runs", hint="name two or more runs")
    if runs.count(STDIO) > 1:
        raise UsageProblem("stdin (-) is named twice", hint="name a file for one of the two runs")
    weights = config.weights_of(len(runs))
    ranked = [read_run(path, call.skipped) for path in runs]
    shaped_by: dict[str, Any] = {
        "engine": f"fuse-{config.method}", "depth": config.depth, "tag": config.tag,
        "weights": weights,
    }  # fmt: skip
    shaped_by |= {"rrf_k": config.rrf_k} if config.method == "rrf" else {"norm": config.norm}
    inputs = {f"run_{nth}": _hash_run(run) for nth, run in enumerate(ranked, start=1)}
    plan = Plan("run", output, shaped_by, inputs, reads=runs)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    if config.method == "rrf":
        fused = reciprocal_ranks(ranked, weights, config.rrf_k)
    else:
        fused = weighted_sum(ranked, weights, config.norm)

    def write() -> Summary:
        stats = {"queries": len(fused), "depth": config.depth}
        with plan.text_file(stats) as handle:
            for query_id, scores in fused.items():
                hits = in_trec_order(scores)[: config.depth]
                write_hits(handle, query_id, hits, config.tag, _DECIMALS)
        return made(plan, stats)

    with lease.of_output(output):
        return write()


def _hash_run(run: Run) -> str:
    return hash_lines(
        f"{query_id}\t{doc_id}\t{score!r}"
        for query_id, hits in run.items()
        for doc_id, score in hits.items()
    )
