"""`ance eval --mteb`: a checkpoint on the tasks of the package mteb.

mteb downloads a task's data, searches or classifies, and computes its scores; the vectors are ours,
with the checkpoint's own prompts. Queries are encoded as queries, and documents and all other texts
as passages. The scores of each task are kept in the cache folder as soon as it is finished.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from ance_cli.call import Call
from ance_cli.config import ComputeConfig
from ance_cli.config.sets import Side
from ance_cli.errors import BadInput, UsageProblem, as_bad_input
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Passage
from ance_cli.formats.hashing import cache_dir, hash_json
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, made, summary_of
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    from mteb import TaskResult
    from mteb.abstasks import AbsTask

    from ance_cli.models.texts import TextEncoder

_TYPES = ("Retrieval", "InstructionRetrieval", "Reranking", "InstructionReranking", "STS",
          "PairClassification", "Classification", "MultilabelClassification", "Clustering",
          "BitextMining", "Summarization")  # fmt: skip
"""The types of tasks that need nothing but vectors of texts."""
_HUB = (
    "the data comes from the Hugging Face hub: set HF_ENDPOINT to a mirror, or HF_HOME to a folder "
    "whose cache has it"
)
_BATCH = 1024
"""Texts that mteb hands over at a time; `ComputeConfig` says how many are encoded together."""


def evaluate_on_mteb(
    checkpoint: Checkpoint,
    names: Sequence[str],
    output: Path | None = None,
    compute: ComputeConfig = ComputeConfig(),
    call: Call = Call(),
) -> Summary:
    """The main score of each task, and their mean; `output` is a JSON file to write.

    `names` are tasks and benchmarks of mteb; a benchmark stands for its tasks. A task that an
    earlier call finished with the same model, data and version of mteb is not measured again.
    Raises `UsageProblem` for an unknown name and for a task that needs more than vectors of texts,
    and `BadInput` at the end if the data of a task could not be loaded.
    """
    from ance_cli.models.devices import choose_devices, choose_dtype

    tasks = find_tasks(names)
    version = _mteb().__version__
    if checkpoint.settings.segments > 1:
        raise UsageProblem(
            f"{checkpoint.shown}: has several vectors for a passage (MaxP), and mteb takes one",
            hint="import the collection and measure it with ance search and ance eval",
        )
    checkpoint.need_head()
    dtype = choose_dtype(compute.dtype, choose_devices(compute.gpus)[0])
    inputs = {f"{side}_tower": checkpoint.tower_hash(side) for side in ("query", "passage")}
    shaping = {
        "dtype": dtype,
        "mteb": version,
        "similarity": checkpoint.settings.similarity,
        **checkpoint.settings.shaping("query"),
        **checkpoint.settings.shaping("passage"),
    }
    plan = None
    if output is not None:
        shaped_by = {**shaping, "tasks": [task.metadata.name for task in tasks]}
        plan = Plan("evaluation", output, shaped_by, inputs, reads=[checkpoint.path])
        if manifest := plan.published(call.force):
            return summary_of(manifest, output, up_to_date=True)
    encoder = MtebEncoder(checkpoint, compute, call.reporter)
    rows = _measure(tasks, encoder, hash_json({**shaping, **inputs}), call.reporter)
    found: Summary = {
        "checkpoint": str(checkpoint.shown), **inputs, "dtype": dtype, "mteb": version,
        "mean": round(float(np.mean([row["score"] for row in rows])), 6), "tasks": rows,
    }  # fmt: skip
    if plan is None:
        return {"kind": "evaluation", **found}
    with plan.text_file(found) as handle:
        handle.write(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return made(plan, found)


def _measure(
    tasks: Sequence[AbsTask], encoder: MtebEncoder, identity: str, reporter: Reporter
) -> list[dict[str, Any]]:
    """One row for each task; `BadInput` at the end if the data of a task could not be loaded."""
    from datasets import disable_progress_bars

    disable_progress_bars()  # the encoder has its own
    rows, failed = [], []
    for task in tasks:
        try:
            result = _result_of(task, encoder, identity)
        except BadInput as problem:
            reporter.warn(problem.what)
            failed.append(task.metadata.name)
            continue
        row = _row(task, result)
        reporter.say(f"{row['task']}: {row['measure']} {row['score']:.4f}")
        rows.append(row)
    if failed:
        raise BadInput(
            f"{len(failed)} of {len(tasks)} tasks have no scores: {', '.join(failed)}",
            hint=f"{_HUB}; the same command then measures only these tasks",
        )
    return rows


def _row(task: AbsTask, result: TaskResult) -> dict[str, Any]:
    return {
        "task": task.metadata.name,
        "type": task.metadata.type,
        "measure": task.metadata.main_score,
        "score": round(float(result.get_score()), 6),
        "splits": sorted(result.scores),
        "revision": result.dataset_revision,
        "seconds": round(result.evaluation_time or 0.0, 2),
    }


# ---------------------------------------------------------------- tasks


def _mteb() -> Any:
    try:
        import mteb
    except ImportError:
        raise UsageProblem(
            "--mteb needs the package mteb, which is not installed",
            hint="pip install 'ance-cli[mteb]'",
        ) from None
    return mteb


def find_tasks(names: Sequence[str]) -> list[AbsTask]:
    """The tasks with these names, and those of the benchmarks with these names, each once."""
    found = {task.metadata.name: task for name in names for task in _tasks_named(name)}
    for task in found.values():
        _check_task(task)
    return list(found.values())


def _tasks_named(name: str) -> list[AbsTask]:
    mteb = _mteb()
    with suppress(KeyError):
        return [mteb.get_task(name)]
    with suppress(KeyError):
        return list(mteb.get_benchmark(name).tasks)
    known = [benchmark.name for benchmark in mteb.get_benchmarks()]
    near = difflib.get_close_matches(
        name, [*known, *(task.metadata.name for task in mteb.get_tasks())]
    )
    raise UsageProblem(
        f"--mteb {name}: mteb has no such task or benchmark",
        hint=f"did you mean {' or '.join(near)}?"
        if near
        else "list them with: mteb available-tasks",
    )


def _check_task(task: AbsTask) -> None:
    """Refuse a task for which vectors of texts are not enough."""
    kind, modalities = task.metadata.type, task.metadata.modalities
    if kind not in _TYPES or list(modalities) != ["text"]:
        raise UsageProblem(
            f"--mteb {task.metadata.name}: a task of type {kind} on {', '.join(modalities)}; "
            "a text encoder can be measured on "
            f"{', '.join(_TYPES)} of text",
            hint="leave the task out, or name the tasks of a benchmark one by one",
        )


def _result_of(task: AbsTask, encoder: MtebEncoder, identity: str) -> TaskResult:
    """The scores of a task, or of the tasks that it combines; from the cache if they are there."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    if isinstance(task, AbsTaskAggregate):
        parts = [_result_of(part, encoder, identity) for part in task.metadata.tasks]
        return task.combine_task_results(parts)
    from mteb import TaskResult

    name, data = task.metadata.name, dict(task.metadata.dataset)
    key = hash_json([identity, data, list(task.eval_splits), list(task.hf_subsets)])
    kept = cache_dir() / "mteb" / f"{name}-{key}.json"
    if kept.exists():
        return TaskResult.model_validate_json(kept.read_bytes())
    with as_bad_input(f"{name}: its data could not be loaded", _HUB):
        task.load_data()
    encoder.task = name
    options = {"batch_size": _BATCH, "show_progress_bar": False}
    try:
        measured = _mteb().evaluate(
            encoder, task, cache=None, co2_tracker=False, encode_kwargs=options,
            show_progress_bar=False,
        )  # fmt: skip
    finally:
        task.unload_data()
    result: TaskResult = measured.task_results[0]
    atomic.write_bytes(kept, result.model_dump_json(indent=2).encode())
    return result


# ---------------------------------------------------------------- the encoder


class MtebEncoder:
    """A checkpoint as mteb's `EncoderProtocol`: vectors of texts, and their similarities."""

    def __init__(self, checkpoint: Checkpoint, compute: ComputeConfig, reporter: Reporter) -> None:
        self._checkpoint, self._compute, self._reporter = checkpoint, compute, reporter
        self._encoder_of = cache(self._load)
        self.task = ""

    def _load(self, side: Side) -> TextEncoder:
        from ance_cli.models.texts import TextEncoder

        return TextEncoder(self._checkpoint, side, self._compute)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb says of the model in its results: nothing."""
        from mteb.models.model_meta import ModelMeta

        return ModelMeta.create_empty()

    def encode(self, inputs: Any, *, prompt_type: Any = None, **_: Any) -> npt.NDArray[np.float32]:
        """(texts, d) vectors of the texts in a DataLoader; `prompt_type` is query, document or
        None."""
        side: Side = "query" if prompt_type == "query" else "passage"
        texts = [text for batch in inputs for text in self._texts(batch)]
        with self._reporter.task(f"{self.task}: {side} texts", len(texts), "text") as bar:
            vectors, _rows = self._encoder_of(side)(texts, bar.advance)
        return vectors

    def _texts(self, batch: dict[str, Any]) -> list[str]:
        """A document has its title and text apart, which the checkpoint joins in its own way."""
        if "body" not in batch:
            return list(batch["text"])
        titles = batch.get("title") or [""] * len(batch["body"])
        return [
            self._checkpoint.settings.text_of(Passage("", title, body))
            for title, body in zip(titles, batch["body"], strict=True)
        ]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(n, m) inner products; those of a cosine model are cosines, because its vectors have
        length one."""
        from mteb.similarity_functions import dot_score

        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(n,) inner products of the vectors at the same places."""
        from mteb.similarity_functions import pairwise_dot_score

        return pairwise_dot_score(embeddings1, embeddings2)
