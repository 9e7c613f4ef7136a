"""Table 1's question: where the negatives come from, at equal steps, on medquad."""

from __future__ import annotations

from benchmarks.study.cell import Cell
from benchmarks.study.collecting import learning, reached

START = "{weights}/tinybert-4L-312-ner"
"""A small encoder that was never trained for retrieval."""
CROSS_ENCODER = "{weights}/ms-marco-MiniLM-L-12-v2"
MEDQUAD = "{data}/medquad"
WORK = "{work}/medquad"
BM25_RUN = f"{WORK}/test.bm25.trec"
BM25_NEGATIVES = f"{WORK}/bm25.jsonl"
RATE = "--lr 5e-5"
"""Of every training, falling to 0 in a line: the steps of warm-up and arm then add up to the same,
taken at once or one after the other."""
WARMUP_STEPS, STEPS = 600, 300
"""The warm-up is to end where BM25's negatives have little more to teach, as the paper's does."""
SHALLOW = 50
"""A depth that suits this corpus better than the paper's 200, by dev: 200 of 16,350 passages are as
large a share as 108,000 of MS MARCO's."""
MEASURES = "'RR@10 nDCG@10 R@100'"
SEEDS = (42, 43, 44)
"""Of the arms that matter; the others have the first one only."""

_RERANKED = 20
"""Documents that the cross-encoder reads for a query: a hundred of 2,120 queries are two hours."""


def tested(
    name: str, checkpoint: str, embeddings: str, data: str = MEDQUAD, rerank: str | None = BM25_RUN
) -> tuple[str, ...]:
    """Search the test split with one checkpoint, rerank BM25's top 100 with it, measure both."""
    folder = f"{{work}}/tested/{name}"
    model = f"--ckpt {checkpoint} --embeddings {embeddings} --data {data}"
    labels = f"--qrels {data}/qrels/test.tsv --measures {MEASURES}"
    search = (
        f"ance search {model} --split test --depth 100 --threads {{threads}} -o {folder}/test.trec",
        f"ance eval {folder}/test.trec {labels} --per-query {folder}/test.tsv",
    )
    if rerank is None:
        return search
    return (
        *search,
        f"ance rerank {rerank} {model} --depth 100 --threads {{threads}} -o {folder}/rerank.trec",
        f"ance eval {folder}/rerank.trec {labels}",
    )


def looped(
    run: str, arm: str, start: str, every: int, segments: int, seed: int, extra: str = ""
) -> str:
    """`ance loop` on medquad with one of the paper's arms."""
    return (
        f"ance loop --data {MEDQUAD} --ckpt {start} --preset small {RATE} {extra}--baseline {arm} "
        f"--refresh-every {every} --segments {segments} --seed {seed} --mode sync "
        f"--threads {{threads}} -o {run}"
    )


def warmup(seed: int) -> str:
    """The folder of the BM25 warm-up of one seed."""
    return f"{WORK}/warmup-{seed}"


def _shared() -> list[Cell]:
    """What other cells start from."""
    cells = [
        Cell(
            name="medquad/bm25-negatives",
            commands=(
                f"ance bm25-negatives --data {MEDQUAD} --split train --depth 200 --negatives 20 "
                f"-o {BM25_NEGATIVES}",
            ),
            makes=(BM25_NEGATIVES,),
            minutes=2,
        ),
        Cell(
            name="medquad/bm25",
            commands=(
                f"ance search --engine lucene --data {MEDQUAD} --split test -o {BM25_RUN}",
                f"ance eval {BM25_RUN} --qrels {MEDQUAD}/qrels/test.tsv --measures {MEASURES} "
                f"--per-query {WORK}/test.bm25.tsv",
            ),
            makes=(BM25_RUN,),
            minutes=1,
            collect=(reached(f"{WORK}/test.bm25.tsv"),),
        ),
    ]
    for seed in SEEDS:
        cells.append(
            Cell(
                name=f"medquad/warmup/seed-{seed}",
                commands=(
                    f"ance train-segment {BM25_NEGATIVES} --data {MEDQUAD} --ckpt {START} "
                    f"--preset small {RATE} --steps {WARMUP_STEPS} --seed {seed} "
                    f"--threads {{threads}} -o {warmup(seed)}",
                ),
                needs=("medquad/bm25-negatives",),
                makes=(f"{warmup(seed)}/latest",),
                seed=seed,
                minutes=8,
            )
        )
    return cells


def _named(arm: str, depth: int | None) -> tuple[str, str]:
    """The name of an arm at a depth of its own, and the flag for it."""
    return (arm, "") if depth is None else (f"{arm}-top-{depth}", f"--depth {depth} ")


def _from_scratch(arm: str, seed: int, depth: int | None = None) -> Cell:
    """All steps from the raw start: as many as warm-up and arm have together."""
    name, flag = _named(arm, depth)
    run = f"{WORK}/{name}-{seed}"
    return Cell(
        name=f"table1/{name}/seed-{seed}",
        commands=(
            looped(run, arm, START, WARMUP_STEPS + STEPS, 1, seed, flag),
            *tested(f"medquad/{name}-{seed}", f"{run}/latest", embeddings(run, 1)),
        ),
        needs=("medquad/bm25",),
        seed=seed,
        minutes=15,
        collect=(learning(run, STEPS),),
    )


def _after_warmup(arm: str, seed: int, depth: int | None = None) -> Cell:
    """What follows the BM25 warm-up; ANCE's negatives are mined again after half of the steps."""
    name, flag = _named(arm, depth)
    run = f"{WORK}/warm-{name}-{seed}"
    every, segments = (STEPS // 2, 2) if arm == "ance" else (STEPS, 1)
    return Cell(
        name=f"table1/bm25-{name}/seed-{seed}",
        commands=(
            looped(run, arm, f"{warmup(seed)}/latest", every, segments, seed, flag),
            *tested(f"medquad/warm-{name}-{seed}", f"{run}/latest", embeddings(run, segments)),
        ),
        needs=("medquad/bm25", f"medquad/warmup/seed-{seed}"),
        makes=(f"{run}/latest", embeddings(run, segments)) if arm == "ance" else (),
        seed=seed,
        minutes=8,
        collect=(learning(run, STEPS),),
    )


def embeddings(run: str, segments: int) -> str:
    """Embeddings by a loop's last checkpoint: there is one generation before the first segment."""
    return f"{run}/generations/{segments + 1:04d}/embeddings"


def _warmup_alone(seed: int) -> Cell:
    """Where the arms after the warm-up begin."""
    vectors = f"{WORK}/warmup-{seed}.emb"
    return Cell(
        name=f"table1/warmup/seed-{seed}",
        commands=(
            f"ance encode --ckpt {warmup(seed)}/latest --data {MEDQUAD} --threads {{threads}} "
            f"-o {vectors}",
            *tested(f"medquad/warmup-{seed}", f"{warmup(seed)}/latest", vectors),
        ),
        needs=("medquad/bm25", f"medquad/warmup/seed-{seed}"),
        makes=(vectors,),
        seed=seed,
        minutes=2,
    )


def cells() -> list[Cell]:
    """Table 1's cells, and the warm-ups that other items start from."""
    first = SEEDS[0]
    return [
        *_shared(),
        Cell(
            name="table1/bm25-cross-encoder",
            commands=(
                f"ance rerank {BM25_RUN} --data {MEDQUAD} --cross-encoder {CROSS_ENCODER} "
                f"--depth {_RERANKED} --threads {{threads}} "
                "-o {work}/tested/medquad/cross-encoder/test.trec",
                "ance eval {work}/tested/medquad/cross-encoder/test.trec "
                f"--qrels {MEDQUAD}/qrels/test.tsv --measures {MEASURES} "
                "--per-query {work}/tested/medquad/cross-encoder/test.tsv",
            ),
            needs=("medquad/bm25",),
            minutes=25,
        ),
        *(_warmup_alone(seed) for seed in SEEDS),
        *(_after_warmup("ance", seed) for seed in SEEDS),
        *(_from_scratch("bm25", seed) for seed in SEEDS),
        *(_after_warmup("nce", seed) for seed in SEEDS),
        *(_after_warmup("bm25+rand", seed) for seed in SEEDS),
        *(_from_scratch(arm, first) for arm in ("rand", "nce", "bm25+rand")),
        *(_after_warmup(arm, first) for arm in ("rand", "bm25")),
        *(_after_warmup("ance", seed, SHALLOW) for seed in SEEDS),
        _after_warmup("bm25", first, SHALLOW),
        _from_scratch("bm25", first, SHALLOW),
    ]
