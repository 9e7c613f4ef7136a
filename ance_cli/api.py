"""ance for notebooks: `import ance_cli.api as ance`.

    vectors = ance.encode(["old violin", "granite"], "runs/ance/best")
    negatives = ance.mine("faq.csv", "runs/warmup/latest")
    checkpoint = ance.train("faq.csv", "bert/", "runs/mine", negatives, steps=500)
    checkpoint = ance.loop("faq.csv", "runs/warmup/latest", "runs/ance", refresh_every=300)
    table = ance.evaluate("data/faq", checkpoint, split="test")
    hits = ance.search("what causes gout", checkpoint, "data/faq")

Data is a dataset folder, anything that `ance import` reads, a `datasets.Dataset` or `DatasetDict`,
a pandas frame, or rows: dicts, or tuples (query, positive, negative, ...). Further keywords are the
flags of the command of the same purpose, by their field names (`batch_size=8`). Vectors that a
function has to make are kept in the cache folder and used again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ance_cli.call import Call, SkippedLines
from ance_cli.config import (
    EncodeConfig,
    FollowConfig,
    LoopConfig,
    MineConfig,
    SearchConfig,
    SegmentConfig,
)
from ance_cli.config.sets import Side
from ance_cli.config.setting import Config
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import (
    Dataset,
    is_dataset,
    locate,
    queries_of_split,
    read_corpus,
)
from ance_cli.formats.hashing import cache_dir, hash_file, hash_json
from ance_cli.formats.jsonl import read_records
from ance_cli.formats.run_folder import RunFolder
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import DenseRetriever, VectorSource

if TYPE_CHECKING:
    import pandas

__all__ = ["dataset", "encode", "evaluate", "loop", "mine", "search", "train"]

Data = Any
"""A path, a dataset of the library `datasets`, a pandas frame, or rows."""

C = TypeVar("C", bound=Config)


def dataset(data: Data, call: Call = Call()) -> Path:
    """The dataset folder of any data; what is no dataset folder is imported into the cache folder.

    Raises `BadInput` for data that cannot be read, and names the row.
    """
    from ance_cli.interop.import_dataset import import_into_cache
    from ance_cli.interop.recognition import Request

    if isinstance(data, str | Path):
        if Path(data).is_dir() and is_dataset(Path(data)):
            return Path(data)
        return import_into_cache(Request([str(data)]), call)
    return import_into_cache(Request(parts=list(_parts_of(data))), call)


def _parts_of(data: Data) -> Iterator[Any]:
    """The splits of data in memory as parts of an import."""
    from ance_cli.interop.columns import shape_of
    from ance_cli.interop.table_files import Table
    from ance_cli.interop.tabular import TableReading, not_understood, part_of

    for split, rows_of in _tables(data):
        first = next(iter(rows_of()), {})
        columns = tuple(first)

        def read(
            skipped: SkippedLines | None, rows_of: Callable[[], Iterable[dict[str, Any]]] = rows_of
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            return enumerate(rows_of(), start=1)

        name = f"data, split {split}" if split else "data"
        shape = shape_of(columns, {})
        if shape is None:
            raise not_understood(name, columns)
        fingerprint = partial(_fingerprint, rows_of)
        table = Table("in memory", columns, read, by_row=True)
        yield part_of(name, table, shape, TableReading(), fingerprint, split or "train")


def _tables(data: Data) -> Iterator[tuple[str | None, Callable[[], Iterable[dict[str, Any]]]]]:
    """(split, its rows) of data in memory."""
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        frame = data
        yield None, lambda: frame.to_dict("records")
    elif isinstance(data, Mapping):  # a DatasetDict, or a dict of rows
        for split, rows in data.items():
            for _, rows_of in _tables(rows):
                yield str(split), rows_of
    elif hasattr(data, "column_names"):  # a Dataset
        yield None, lambda: data
    elif isinstance(data, Sequence):
        yield None, lambda: map(_row, data)
    else:
        raise UsageProblem(
            f"data of type {type(data).__name__} cannot be read",
            hint="pass a path, a datasets.Dataset, a pandas frame, or a list of rows",
        )


def _row(row: Any) -> dict[str, Any]:
    """A dict as it is; a tuple as a query, a positive and negatives."""
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, tuple | list) and len(row) >= 2:
        names = ["query", "positive", *(f"negative_{n}" for n in range(1, len(row) - 1))]
        return dict(zip(names, row, strict=True))
    raise UsageProblem(
        f"a row of type {type(row).__name__} cannot be read",
        hint="a row is a dict, or a tuple (query, positive, negative, ...)",
    )


def _fingerprint(rows_of: Callable[[], Iterable[dict[str, Any]]]) -> str:
    return hash_json([hash_json(row) for row in rows_of()])


def _config(kind: type[C], settings: Mapping[str, Any]) -> C:
    """A config from keywords; `UsageProblem` names a keyword that it does not have."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(settings.keys() - known):
        raise UsageProblem(
            f"{unknown[0]!r} is not a setting here", hint=f"the settings are {', '.join(known)}"
        )
    return kind(**settings)


# -------------------------------------------------------------------- vectors


def encode(
    texts: Sequence[str], ckpt: str | Path, side: Side = "passage", **settings: Any
) -> npt.NDArray[np.float32]:
    """(texts, d) vectors of texts, with a checkpoint's encoder and prompt of that side.

    A long passage that the checkpoint splits into segments (MaxP) is refused: use `ance encode`.
    """
    from ance_cli.models.texts import TextEncoder

    config = _config(EncodeConfig, {"side": side, **settings})
    vectors, counts = TextEncoder(Checkpoint(Path(ckpt)), side, config)(list(texts))
    if (counts != 1).any():
        raise UsageProblem(
            "a text has several vectors, because the checkpoint splits long passages (MaxP)",
            hint="encode a corpus with `ance encode`, whose folder keeps all of them",
        )
    return vectors


def _embeddings(checkpoint: Checkpoint, found: Dataset, call: Call) -> VectorSource:
    """The corpus's vectors, made once for each encoder and corpus."""
    from ance_cli.encoding.encode import encode as stage

    key = hash_json([checkpoint.tower_hash("passage"), hash_file(found.corpus)])
    folder = cache_dir() / "embeddings" / key
    stage(checkpoint, found, folder, call=call)
    return VectorSource(folder, "embeddings")


# -------------------------------------------------------------------- negatives and training


def mine(
    data: Data, ckpt: str | Path, split: str = "train", call: Call = Call(), **settings: Any
) -> pandas.DataFrame:
    """Negatives of every pair of the split: query_id, positive_id, negative_id, rank, score.

    `settings` are those of `ance mine`, such as `depth=200, negatives=20`.
    """
    import pandas

    from ance_cli.mining.mine import mine as stage
    from ance_cli.mining.mining_job import MiningFiles

    config = _config(MineConfig, settings)
    found, checkpoint = locate(dataset(data, call), split), Checkpoint(Path(ckpt))
    vectors = _embeddings(checkpoint, found, call)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "negatives.jsonl")
        stage(checkpoint, found, vectors, MiningFiles(path), config, call=call)
        rows = [
            (pair["query_id"], pair["positive_id"], negative_id, rank, score)
            for _, pair in read_records(path)
            for negative_id, rank, score in zip(
                pair["negative_ids"], pair["negative_ranks"], pair["negative_scores"], strict=True
            )
        ]
    return pandas.DataFrame(
        rows, columns=["query_id", "positive_id", "negative_id", "rank", "score"]
    )


def _negatives_file(negatives: str | Path | pandas.DataFrame | None, output: Path) -> Path | None:
    """The negatives as a file; a frame of `mine` is written next to the run."""
    if negatives is None or isinstance(negatives, str | Path):
        return None if negatives is None else Path(negatives)
    from ance_cli.formats.jsonl import open_output
    from ance_cli.formats.negatives_file import PairNegatives

    path = output.with_name(f"{output.name}.negatives.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_output(path) as handle:
        for (query_id, positive_id), group in negatives.groupby(
            ["query_id", "positive_id"], sort=False
        ):
            pair = PairNegatives(str(query_id), str(positive_id), group["negative_id"].tolist())
            handle.write(pair.to_line())
    return path


def train(
    data: Data,
    ckpt: str | Path,
    output: str | Path,
    negatives: str | Path | pandas.DataFrame | None = None,
    *,
    steps: int,
    split: str = "train",
    preset: str | None = None,
    call: Call = Call(),
    **settings: Any,
) -> Path:
    """Train a run for some steps; the path of its newest checkpoint.

    `negatives` is a file of `ance mine` or a frame of `mine`; without any, each query learns from
    the other documents of its batch. `settings` are the recipe: `batch_size=8, lr=2e-5`.
    """
    from ance_cli.training.run_creation import RunSpec
    from ance_cli.training.train_segment import train_segment

    found = locate(dataset(data, call), split)
    from_batch = {"in_batch": "all", "negatives_per_positive": 0} if negatives is None else {}
    recipe = {**from_batch, **settings}
    spec = RunSpec(found, Path(ckpt), preset, recipe)
    file = _negatives_file(negatives, Path(output))
    train_segment(Path(output), file, SegmentConfig(steps=steps), spec, call=call)
    return RunFolder(Path(output)).latest


def loop(
    data: Data,
    ckpt: str | Path,
    output: str | Path,
    *,
    refresh_every: int,
    segments: int = 3,
    call: Call = Call(),
    **settings: Any,
) -> Path:
    """Train and refresh, alternating or at the same time; the path of the best checkpoint on dev,
    or of the newest where there is no dev split.

    `settings` are those of `ance loop`: `preset="small", depth=50, batch_size=8`.
    """
    from ance_cli.loop.loop import loop as stage

    given = {"data": dataset(data, call), "ckpt": Path(ckpt), **settings}
    config = LoopConfig(refresh_every=refresh_every, segments=segments)
    stage(Path(output), config, FollowConfig(), given, call=call)
    run = RunFolder(Path(output))
    return run.best if run.best.exists() else run.latest


# -------------------------------------------------------------------- search and measures


def search(
    queries: str | Sequence[str] | Mapping[str, str],
    ckpt: str | Path,
    data: Data,
    depth: int = 10,
    call: Call = Call(),
) -> pandas.DataFrame:
    """The best documents of each query: query, rank, doc_id, score, title, text.

    `queries` are one question, several, or query_id -> text.
    """
    import pandas

    if isinstance(queries, str):
        queries = [queries]
    named = queries if isinstance(queries, Mapping) else {text: text for text in queries}
    found, checkpoint = locate(dataset(data, call)), Checkpoint(Path(ckpt))
    retriever = DenseRetriever(checkpoint, _embeddings(checkpoint, found, call))
    vectors = retriever.encode_queries(list(named.values()), call.reporter)
    scores, places = retriever.search(vectors, depth, call.reporter)
    wanted = {retriever.doc_ids[place] for place in places[places >= 0].tolist()}
    texts = {each.doc_id: each for each in read_corpus(found.corpus) if each.doc_id in wanted}
    rows = [
        (name, rank, doc_id, float(score), texts[doc_id].title, texts[doc_id].text)
        for name, ranked, row in zip(named, places, scores, strict=True)
        for rank, (place, score) in enumerate(zip(ranked, row, strict=True), start=1)
        if place >= 0
        for doc_id in [retriever.doc_ids[place]]
    ]
    return pandas.DataFrame(rows, columns=["query", "rank", "doc_id", "score", "title", "text"])


def evaluate(
    data: Data,
    ckpt: str | Path | Sequence[str | Path],
    split: str = "test",
    measures: str = "RR@10 nDCG@10 R@100",
    depth: int = 100,
    call: Call = Call(),
) -> pandas.DataFrame:
    """The measures of one or several checkpoints on a split: checkpoint, measure, mean, and the
    95 % interval's low and high; of several, difference to the first and p (paired, both sides)."""
    import pandas

    from ance_cli.evaluation.evaluate import evaluate_runs
    from ance_cli.retrieval.search import DenseSearcher
    from ance_cli.retrieval.search import search as stage

    found = locate(dataset(data, call), split)
    queries = queries_of_split(found)
    checkpoints = [ckpt] if isinstance(ckpt, str | Path) else list(ckpt)
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        for number, place in enumerate(checkpoints):
            checkpoint = Checkpoint(Path(place))
            searcher = DenseSearcher(checkpoint, _embeddings(checkpoint, found, call), found.corpus)
            runs.append(Path(scratch, f"{number}.trec"))
            stage(queries, runs[-1], searcher, SearchConfig(depth=depth), call=call)
        measured = evaluate_runs(runs, found.need("qrels"), measures, call=call)
    rows = [
        {"checkpoint": str(place), "measure": name, **values}
        for place, run in zip(checkpoints, measured["runs"], strict=True)
        for name, values in run["measures"].items()
    ]
    return pandas.DataFrame(rows)
