"""OpenQA's question: how many of squad's questions have an answer among the first passages."""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell

SEED = arms.SEEDS[0]
_DATA = "{data}/squad"
_WORK = "{work}/squad"
_NEGATIVES = f"{_WORK}/bm25.jsonl"
_RUN = f"{_WORK}/test.bm25.trec"
_WARMUP = f"{_WORK}/warmup"
_TESTED = "{work}/tested/squad"


def _measured(run: str, per_query: str) -> str:
    return (
        f"ance eval {run} --data {_DATA} --split test --measures 'Answers@20 Answers@100' "
        f"--per-query {per_query}"
    )


def _run_of(name: str) -> str:
    return f"{_TESTED}/{name}/test.trec"


def _trained(name: str, arm: str, every: int, segments: int) -> Cell:
    """300 steps more from the warm-up; no negative holds an answer."""
    run = f"{_WORK}/{name}"
    return Cell(
        name=f"openqa/{name}",
        commands=(
            f"ance loop --data {_DATA} --ckpt {_WARMUP}/latest --preset small {arms.RATE} "
            f"--baseline {arm} --answers --refresh-every {every} --segments {segments} "
            f"--seed {SEED} --mode sync --threads {{threads}} -o {run}",
            f"ance search --ckpt {run}/latest --embeddings {arms.embeddings(run, segments)} "
            f"--data {_DATA} --split test --depth 100 --threads {{threads}} -o {_run_of(name)}",
            _measured(_run_of(name), f"{_TESTED}/{name}/test.tsv"),
        ),
        needs=("openqa/warmup",),
        makes=(_run_of(name),),
        seed=SEED,
        minutes=6,
    )


def cells() -> list[Cell]:
    """BM25, what is trained on its negatives, ANCE, and BM25 with ANCE."""
    both = _run_of("bm25-ance-fused")
    return [
        Cell(
            name="openqa/bm25",
            commands=(
                f"ance search --engine lucene --data {_DATA} --split test -o {_RUN}",
                _measured(_RUN, f"{_WORK}/test.bm25.tsv"),
            ),
            makes=(_RUN,),
            minutes=1,
        ),
        Cell(
            name="openqa/bm25-negatives",
            commands=(
                f"ance bm25-negatives --data {_DATA} --split train --depth 200 --negatives 20 "
                f"--answers -o {_NEGATIVES}",
            ),
            makes=(_NEGATIVES,),
            minutes=2,
        ),
        Cell(
            name="openqa/warmup",
            commands=(
                f"ance train-segment {_NEGATIVES} --data {_DATA} --ckpt {arms.START} "
                f"--preset small {arms.RATE} --steps 300 --seed {SEED} --threads {{threads}} "
                f"-o {_WARMUP}",
            ),
            needs=("openqa/bm25-negatives",),
            makes=(f"{_WARMUP}/latest",),
            seed=SEED,
            minutes=4,
        ),
        _trained("bm25-bm25", "bm25", 300, 1),
        _trained("bm25-ance", "ance", 150, 2),
        Cell(
            name="openqa/fused",
            commands=(
                f"ance fuse {_RUN} {_run_of('bm25-ance')} --depth 100 -o {both}",
                _measured(both, f"{_TESTED}/bm25-ance-fused/test.tsv"),
            ),
            needs=("openqa/bm25", "openqa/bm25-ance"),
            seed=SEED,
            minutes=1,
        ),
    ]
