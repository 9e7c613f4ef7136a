"""The asynchronous gap (ICLR Fig. 5): how old negatives may get, and how far down they come from.

Every cell trains 300 steps of ANCE from the same warm-up. With 300 steps between refreshes there is
one, before the first step: the paper's gap without end.
"""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell
from benchmarks.study.collecting import training_curves

SEED = arms.SEEDS[0]
_HIGH_RATE = "--lr 1e-4"


def looped(
    name: str,
    every: int,
    extra: str,
    minutes: float,
    steps: int = arms.STEPS,
    mode: str = "sync",
    cores: int = 1,
) -> Cell:
    """A cell `ITEM/NAME` of so many steps of ANCE, with the curves that a figure is drawn from."""
    run = f"{{work}}/{name}"
    segments = steps // every
    embeddings = arms.embeddings(run, segments)
    encode: tuple[str, ...] = ()
    if mode == "async":  # a refresh daemon that is behind skips checkpoints: no number is certain
        embeddings = f"{run}.emb"
        encode = (
            f"ance encode --ckpt {run}/latest --data {arms.MEDQUAD} --threads {{threads}} "
            f"-o {embeddings}",
        )
    command = (
        f"ance loop --data {arms.MEDQUAD} --ckpt {arms.warmup(SEED)}/latest --preset small "
        f"--baseline ance {extra} --refresh-every {every} --segments {segments} --seed {SEED} "
        f"--mode {mode} --log-every 5 --threads {{threads}} -o {run}"
    )
    return Cell(
        name=name,
        commands=(command, *encode, *arms.tested(name, f"{run}/latest", embeddings, rerank=None)),
        needs=(f"medquad/warmup/seed-{SEED}",),
        makes=(f"{run}/latest", embeddings),
        seed=SEED,
        minutes=minutes,
        cores=cores,
        collect=(training_curves(run),),
    )


def cells() -> list[Cell]:
    """Refreshes every 50, 150 and 300 steps; a higher rate; depths; side by side."""
    shallow = f"{arms.RATE} --depth {arms.SHALLOW}"
    return [
        looped("gap/every-50", 50, arms.RATE, 11),
        looped("gap/every-150", 150, arms.RATE, 7),
        looped("gap/every-300", 300, arms.RATE, 6),
        looped("gap/every-50-high-rate", 50, _HIGH_RATE, 11),
        looped("gap/every-300-high-rate", 300, _HIGH_RATE, 6),
        looped("gap/depth-50", 150, shallow, 7),
        looped("gap/depth-50-every-50", 50, shallow, 11),
        looped("gap/depth-50-every-300", 300, shallow, 6),
        looped("gap/depth-1000", 150, f"{arms.RATE} --depth 1000", 7),
        looped("gap/async-1-1", 50, f"{arms.RATE} --gpu-split 1:1", 15, mode="async", cores=2),
        looped("gap/async-3-1", 50, f"{arms.RATE} --gpu-split 3:1", 15, mode="async", cores=4),
    ]
