"""What a refresh is worth once a pair sees its negatives again: several epochs of ANCE.

Elsewhere in the study an arm has 300 steps, three quarters of an epoch of medquad, so that no pair
is trained twice. Here it has three times as many, from the depth that suits the corpus: with the
negatives of the warm-up throughout, or mined again twice.
"""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell
from benchmarks.study.gap import looped

STEPS = 3 * arms.STEPS
_SHALLOW = f"{arms.RATE} --depth {arms.SHALLOW}"


def cells() -> list[Cell]:
    """Mined once, and every 300 steps."""
    return [
        looped("epochs/once", STEPS, _SHALLOW, 16, STEPS),
        looped("epochs/every-300", arms.STEPS, _SHALLOW, 18, STEPS),
    ]
