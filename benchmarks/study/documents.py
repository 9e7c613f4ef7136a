"""MaxP against FirstP on long documents, by the depth of the answer."""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell
from benchmarks.study.collecting import by_answer_depth, documents_asked_for

SEED = arms.SEEDS[0]
_DATA = "{data}/medquad_doc"
_UNSEEN = "{data}/covidqa"
_WORK = "{work}/documents"
_NEGATIVES = f"{_WORK}/bm25.jsonl"
_STEPS = 100
KINDS = {"firstp": "--segmentation first", "maxp": "--segmentation special --max-segments 4"}
"""A step of MaxP takes three seconds on two cores, with four segments of 96 tokens."""
_ALL_SEGMENTS = 64
"""For covidqa's papers of 3,599 words, of whose beginning four segments see three hundred."""
ROWS = (
    ("medquad_doc", "FirstP", "firstp", "medquad_doc"),
    ("medquad_doc", "MaxP", "maxp", "medquad_doc"),
    ("covidqa", "FirstP", "firstp", "covidqa"),
    ("covidqa", "MaxP", "maxp", "covidqa"),
    ("covidqa", f"MaxP, {_ALL_SEGMENTS} segments", "maxp", "covidqa-whole"),
)
"""What is compared: the data, the name, the kind of the cell, the label of the run in it. Either
data's FirstP is what the others are held against."""


def _run(kind: str) -> str:
    return f"{_WORK}/{kind}"


def _tested(label: str, data: str, kind: str, vectors: str, settings: str = "") -> tuple[str, str]:
    """Search a test split and measure it under a label."""
    folder = f"{{work}}/tested/documents/{kind}"
    return (
        f"ance search --ckpt {_run(kind)}/latest --embeddings {vectors} --data {data} {settings}"
        f"--split test --depth 100 --threads {{threads}} -o {folder}/{label}.trec",
        f"ance eval {folder}/{label}.trec --qrels {data}/qrels/test.tsv "
        f"--measures {arms.MEASURES} --per-query {folder}/{label}.tsv",
    )


def _encoded_and_tested(label: str, kind: str, settings: str = "") -> tuple[str, ...]:
    """The same on covidqa, whose papers no run has seen."""
    vectors = f"{_run(kind)}.{label}.emb"
    return (
        f"ance encode --ckpt {_run(kind)}/latest --data {_UNSEEN} {settings}--threads {{threads}} "
        f"-o {vectors}",
        *_tested(label, _UNSEEN, kind, vectors, settings),
    )


def _warmup(kind: str, minutes: float) -> Cell:
    return Cell(
        name=f"documents/{kind}/warmup",
        commands=(
            f"ance train-segment {_NEGATIVES} --data {_DATA} --ckpt {arms.START} --preset small "
            f"{KINDS[kind]} --passage-length 96 {arms.RATE} --steps {_STEPS} --seed {SEED} "
            f"--threads {{threads}} -o {_run(kind)}-warmup",
        ),
        needs=("documents/bm25-negatives",),
        makes=(f"{_run(kind)}-warmup/latest",),
        seed=SEED,
        minutes=minutes,
    )


def _ance(kind: str, minutes: float) -> Cell:
    run = _run(kind)
    every = _STEPS // 2
    commands = [
        f"ance loop --data {_DATA} --ckpt {run}-warmup/latest --preset small {KINDS[kind]} "
        f"--passage-length 96 {arms.RATE} --baseline ance --refresh-every {every} "
        f"--segments 2 --seed {SEED} --mode sync --threads {{threads}} -o {run}",
        *_tested("medquad_doc", _DATA, kind, arms.embeddings(run, 2)),
        *_encoded_and_tested("covidqa", kind),
    ]
    tested_on = {"medquad_doc": _DATA, "covidqa": _UNSEEN}
    if kind == "maxp":
        settings = f"--segmentation special --max-segments {_ALL_SEGMENTS} "
        commands += _encoded_and_tested("covidqa-whole", kind, settings)
        tested_on["covidqa-whole"] = _UNSEEN
    return Cell(
        name=f"documents/{kind}",
        commands=tuple(commands),
        needs=(f"documents/{kind}/warmup",),
        seed=SEED,
        minutes=minutes,
        collect=tuple(
            collect(label, data)
            for label, data in tested_on.items()
            for collect in (by_answer_depth, documents_asked_for)
        ),
    )


def cells() -> list[Cell]:
    """BM25's negatives, and for either kind a warm-up and ANCE from it."""
    negatives = Cell(
        name="documents/bm25-negatives",
        commands=(
            f"ance bm25-negatives --data {_DATA} --split train --depth 200 --negatives 20 "
            f"-o {_NEGATIVES}",
        ),
        makes=(_NEGATIVES,),
        minutes=2,
    )
    return [
        negatives,
        _warmup("firstp", 2),
        _ance("firstp", 4),
        _warmup("maxp", 6),
        _ance("maxp", 12),
    ]
