"""The paper's analysis (ICLR Sec. 3 and 6.3, Fig. 3 and 4): a cell is an `ance diagnose`."""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell
from benchmarks.study.collecting import report_at

SEED = arms.SEEDS[0]


def _cell(
    name: str, needs: tuple[str, ...], checkpoint: str, vectors: str, run: str | None
) -> Cell:
    report = f"{{work}}/theory/{name}.json"
    history = f"--run {run} " if run else ""
    return Cell(
        name=f"theory/{name}",
        commands=(
            f"ance diagnose --ckpt {checkpoint} --data {arms.MEDQUAD} --split train "
            f"--embeddings {vectors} {history}--sample 24 --draws 4 --seed {SEED} "
            f"--threads {{threads}} -o {report} --figures {{work}}/theory/{name}",
        ),
        needs=needs,
        seed=SEED,
        minutes=5,
        collect=(report_at(report),),
    )


def cells() -> list[Cell]:
    """Before ANCE and after it, and along the run with most refreshes."""
    warmup, ance = arms.warmup(SEED), f"{arms.WORK}/warm-ance-{SEED}"
    often = "{work}/gap/every-50"
    encoded = (f"medquad/warmup/seed-{SEED}", f"table1/warmup/seed-{SEED}")
    return [
        _cell("warmup", encoded, f"{warmup}/latest", f"{warmup}.emb", None),
        _cell("ance", (f"table1/bm25-ance/seed-{SEED}",), f"{ance}/latest",
              arms.embeddings(ance, 2), ance),
        _cell("every-50", ("gap/every-50",), f"{often}/latest",
              arms.embeddings(often, arms.STEPS // 50), often),
    ]  # fmt: skip
