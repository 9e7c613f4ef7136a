"""What came after ANCE, each against uniform ANCE at equal steps on medquad.

As `table1/bm25-ance/seed-42`: 300 steps from the same warm-up, mined again after 150.
"""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell
from benchmarks.study.collecting import learning

SEED = arms.SEEDS[0]
_WARMUP = f"medquad/warmup/seed-{SEED}"
_LOOPED = {
    "simans": "--sampler simans",
    # scores are near 308, and the margins that matter are below ten: 5 % would leave easy ones
    "margin": "--relative-margin 0.01",
    "momentum": "--mix ann:0.5,previous:0.5",
    "lookahead": "--mix ann:0.5,lookahead:0.5",
    "tele": "--mix ann,previous,lookahead",
    "in-batch": "--in-batch all",
}
"""Method -> what it adds to the loop of uniform ANCE."""
_TAUGHT = {
    "denoised": ("", "--teacher-max 0.9"),
    "margin-mse": ("--distill margin-mse", ""),
}
"""Method -> what it adds to training, and to mining with a cross-encoder."""


def _looped(name: str, extra: str) -> Cell:
    run = f"{{work}}/later/{name}"
    start = f"{arms.warmup(SEED)}/latest"
    loop = arms.looped(run, "ance", start, arms.STEPS // 2, 2, SEED, f"{extra} ")
    return Cell(
        name=f"later/{name}",
        commands=(
            loop,
            *arms.tested(f"later/{name}", f"{run}/latest", arms.embeddings(run, 2), rerank=None),
        ),
        needs=(_WARMUP,),
        seed=SEED,
        minutes=8,
        collect=(learning(run, arms.STEPS),),
    )


def _taught(name: str, training: str, mining: str) -> list[Cell]:
    """The same cycle by its stages: a cross-encoder reads 26,000 pairs in each refresh, of which
    it is given as many tokens as the encoder sees.

    One negative is kept for a pair: 300 steps of 32 are less than an epoch, so that no pair draws
    twice from what a generation has for it.
    """
    run = f"{{work}}/later/{name}"
    vectors = f"{run}.emb"
    refresh = f"ance refresh {run} --depth 200 --negatives 1 --teacher {arms.CROSS_ENCODER}"
    refresh = f"{refresh} --pair-length 128 {mining} --threads {{threads}}"
    train = "ance train-segment {run}/generations/{number:04d}/negatives.jsonl --steps 150"
    parts = [f"{train} --threads {{{{threads}}}} -o {{run}}".format(run=run, number=n)
             for n in (1, 2)]  # fmt: skip
    return [
        Cell(
            name=f"later/{name}/mined",
            commands=(
                f"ance train-segment --data {arms.MEDQUAD} --ckpt {arms.warmup(SEED)}/latest "
                f"--preset small {arms.RATE} {training} --seed {SEED} --steps 0 "
                f"--total-steps {arms.STEPS} -o {run}",
                refresh,
            ),
            needs=(_WARMUP,),
            makes=(f"{run}/generations/0001/negatives.jsonl",),
            seed=SEED,
            minutes=14,
        ),
        Cell(
            name=f"later/{name}/mined-again",
            commands=(parts[0], refresh),
            needs=(f"later/{name}/mined",),
            makes=(f"{run}/generations/0002/negatives.jsonl",),
            seed=SEED,
            minutes=16,
        ),
        Cell(
            name=f"later/{name}",
            commands=(
                parts[1],
                f"ance encode --ckpt {run}/latest --data {arms.MEDQUAD} --threads {{threads}} "
                f"-o {vectors}",
                *arms.tested(f"later/{name}", f"{run}/latest", vectors, rerank=None),
            ),
            needs=(f"later/{name}/mined-again",),
            seed=SEED,
            minutes=5,
            collect=(learning(run, arms.STEPS),),
        ),
    ]


def _adore() -> Cell:
    """The query tower alone, on negatives retrieved at each step from the warm-up's vectors."""
    run = "{work}/later/adore"
    vectors = f"{arms.warmup(SEED)}.emb"
    return Cell(
        name="later/adore",
        commands=(
            f"ance train-segment --data {arms.MEDQUAD} --ckpt {arms.warmup(SEED)}/latest "
            f"--preset small {arms.RATE} --freeze-passages --embeddings {vectors} --live-depth 200 "
            f"--steps {arms.STEPS} --seed {SEED} --threads {{threads}} -o {run}",
            *arms.tested("later/adore", f"{run}/latest", vectors, rerank=None),
        ),
        needs=(_WARMUP, f"table1/warmup/seed-{SEED}"),
        seed=SEED,
        minutes=6,
        collect=(learning(run, arms.STEPS),),
    )


def cells() -> list[Cell]:
    """One cell a method, three where a cross-encoder reads along."""
    taught = [cell for name, extra in _TAUGHT.items() for cell in _taught(name, *extra)]
    return [*(_looped(name, extra) for name, extra in _LOOPED.items()), _adore(), *taught]
