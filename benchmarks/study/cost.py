"""What each operation costs on this machine (ICLR Tab. 5)."""

from __future__ import annotations

from benchmarks.study import arms
from benchmarks.study.cell import Cell, Collect
from benchmarks.study.collecting import figures_told, step_rate

SEED = arms.SEEDS[0]
_WORK = "{work}/cost"
_CHECKPOINT = f"{arms.warmup(SEED)}/latest"
_WARMUP = f"medquad/warmup/seed-{SEED}"
_MODEL = f"--ckpt {_CHECKPOINT} --data {arms.MEDQUAD}"
_VECTORS = f"{_WORK}/embeddings"
_GRAPH = f"{_WORK}/hnsw"
_TRAINED = f"{_WORK}/run"


def _cell(
    name: str,
    *commands: str,
    needs: tuple[str, ...] = (_WARMUP,),
    makes: tuple[str, ...] = (),
    minutes: float = 2,
    collect: tuple[Collect, ...] = (),
) -> Cell:
    return Cell(
        name=f"cost/{name}",
        commands=commands,
        needs=needs,
        makes=makes,
        minutes=minutes,
        collect=(figures_told, *collect),
    )


def cells() -> list[Cell]:
    """An operation each, on outputs of its own."""
    return [
        _cell(
            "encode",
            f"ance encode {_MODEL} --threads {{threads}} -o {_VECTORS}",
            makes=(_VECTORS,),
        ),
        _cell(
            "index",
            f"ance index {_VECTORS} --factory HNSW32 --threads {{threads}} -o {_GRAPH}",
            needs=("cost/encode",),
            makes=(_GRAPH,),
        ),
        _cell(
            "online",
            f"ance bench-search {_VECTORS} {_GRAPH} {_MODEL} --split dev --threads {{threads}}",
            needs=("cost/encode", "cost/index", _WARMUP),
        ),
        _cell(
            "bm25",
            f"ance search --engine lucene --data {arms.MEDQUAD} --split dev -o {_WORK}/bm25.trec",
            # the index is in the cache by now
            f"ance search --engine lucene --data {arms.MEDQUAD} --split test -o {_WORK}/more.trec",
            needs=(),
            makes=(f"{_WORK}/bm25.trec",),
        ),
        _cell(
            "rerank",
            f"ance rerank {_WORK}/bm25.trec {_MODEL} --depth 10 --threads {{threads}} "
            f"-o {_WORK}/reranked.trec",
            needs=("cost/bm25", _WARMUP),
        ),
        _cell(
            "cross-encoder",
            f"ance rerank {_WORK}/bm25.trec --data {arms.MEDQUAD} --cross-encoder "
            f"{arms.CROSS_ENCODER} --depth 10 --threads {{threads}} -o {_WORK}/crossed.trec",
            needs=("cost/bm25",),
            minutes=5,
        ),
        _cell(
            "train",
            f"ance train-segment {arms.BM25_NEGATIVES} {_MODEL} --preset small --seed {SEED} "
            f"--steps 100 --threads {{threads}} -o {_TRAINED}",
            needs=("medquad/bm25-negatives", _WARMUP),
            makes=(f"{_TRAINED}/latest",),
            collect=(step_rate(_TRAINED),),
        ),
        _cell("refresh", f"ance refresh {_TRAINED} --threads {{threads}}", needs=("cost/train",)),
    ]
