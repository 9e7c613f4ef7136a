"""ANCE compared with what people do today: sentence-transformers with negatives mined once.

    pip install 'sentence-transformers[train]>=5'
    python -m benchmarks.today --work DIR [--data DIR] [--ckpt DIR] [--steps 300] [--seed 42]

Every arm starts from the same checkpoint (after a warm-up in docs/evidence/reproduce.md), and
trains as `--preset small` does: batch, lengths, AdamW, rate, decay, dropout, number format. All are
measured by one path, `ance encode`, `ance search` and `ance eval`, on the test split.

An arm leaves its seconds in DIR/ARM/trained.json and its ranking in DIR/ARM/test.trec; the same
command skips what is there. One that was interrupted starts again, so that its seconds are whole.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from ance_cli.config import DemoConfig
from ance_cli.formats.atomic import write_bytes
from ance_cli.formats.manifest import manifest_name
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Silent
from ance_cli.setup.demo import packaged_encoder
from ance_cli.setup.docstrings import docstring_dataset
from benchmarks.once_mined import RECIPE, Setting, least_cosine, mine, train
from benchmarks.study.machine import usable_cores

MEASURES = ("RR@10", "nDCG@10", "R@100")
REFRESHES = 2
TRAINED, RANKED = "trained.json", "test.trec"
START = "start"

SAME = 0.9999
"""A cosine above this is that of one vector, computed twice."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: `loop` has flags of `ance loop`, which mines `times` times; `mining`
    names an entry of `MINING`.

    With `time_of`, an arm trains for as many steps as fit into all the seconds of that one, at the
    rate of the arm `like`, whose equal in all else it is.
    """

    what: str
    loop: tuple[str, ...] | None = None
    times: int = REFRESHES
    mining: str | None = None
    time_of: str | None = None
    like: str | None = None

    @property
    def needs(self) -> set[str]:
        return {name for name in (self.time_of, self.like) if name}


ARMS = {
    "ance": Arm("ANCE as in the paper", loop=("--baseline", "ance")),
    "ance-in-batch": Arm("ANCE and in-batch negatives", loop=("--in-batch", "all")),
    "ance-top-50": Arm("ANCE from the top 50", loop=("--baseline", "ance", "--depth", "50")),
    "ance-top-50-once": Arm("ANCE from the top 50, mined once",
                            loop=("--baseline", "ance", "--depth", "50"), times=1),
    "ance-in-batch-top-50": Arm("ANCE from the top 50 and in-batch negatives",
                                loop=("--in-batch", "all", "--depth", "50")),
    "st-in-batch": Arm("in-batch negatives alone"),
    "st-margin": Arm("mined once, by margin", mining="margin"),
    "st-ranks": Arm("mined once, by ranks", mining="ranks"),
    "st-top-50": Arm("mined once, from the top 50", mining="head"),
    "st-margin-time": Arm("mined once, by margin; equal time", mining="margin",
                          time_of="ance-in-batch", like="st-margin"),
    "st-ranks-time": Arm("mined once, by ranks; equal time", mining="ranks",
                         time_of="ance-in-batch", like="st-ranks"),
}  # fmt: skip
"""In the order in which they run: an arm comes after those it needs."""


@dataclass(frozen=True)
class Trained:
    """What an arm took, in seconds of wall time with all that a process needs to start and end;
    `stepping` is the part of `training` that grows with the steps (None for ours)."""

    steps: int
    mining: float
    training: float
    stepping: float | None = None

    @property
    def all(self) -> float:
        return self.mining + self.training


def trained(folder: Path) -> Trained:
    return Trained(**orjson.loads((folder / TRAINED).read_bytes()))


def ance(*arguments: object) -> str:
    """What a command printed."""
    command = [sys.executable, "-m", "ance_cli", *map(str, arguments), "--config", "none"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def in_a_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call in a process of its own, and the seconds from its start to its end."""
    began = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = pool.submit(function, *arguments).result()
    return result, time.perf_counter() - began


# ---------------------------------------------------------------- arms


def refreshed(arm: Arm, setting: Setting, folder: Path) -> Trained:
    """Train by `ance loop`. Its last refresh is not counted: nothing is trained on it."""
    assert arm.loop is not None
    began = time.time()
    ance("loop", "--data", setting.data, "--ckpt", setting.ckpt, "--preset", "small", *arm.loop,
         "--refresh-every", setting.steps // arm.times, "--segments", arm.times, "--mode", "sync",
         "--dev-split", "none", "--seed", setting.seed, "--threads", setting.threads,
         "--cache-dir", folder / "cache", "-o", folder / "run", "--quiet")  # fmt: skip
    seconds = {"generation published": 0.0, "segment finished": 0.0}
    for line in (folder / "run" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["what"] in seconds and event.get("checkpoint_step") != setting.steps:
            ended = datetime.fromisoformat(event["time"]).timestamp()
            seconds[event["what"]] += ended - began
            began = ended
    (folder / "checkpoint").symlink_to(Path("run", "latest"))
    return Trained(setting.steps, *seconds.values())


def once_mined(arm: Arm, setting: Setting, work: Path, folder: Path) -> Trained:
    """Train by sentence-transformers, and convert its model into a checkpoint of ours."""
    rows, mining = mined(arm.mining, setting, work) if arm.mining else (None, 0.0)
    steps = setting.steps
    if arm.time_of and arm.like:
        like = trained(work / arm.like)
        assert like.stepping is not None
        left = trained(work / arm.time_of).all - mining - (like.training - like.stepping)
        steps = max(1, int(like.steps * left / like.stepping))
    stepping, training = in_a_process(train, setting, rows, steps, folder)
    ance("checkpoint", "convert", folder / "model", "-o", folder / "checkpoint", "--quiet")
    must_agree(setting, folder / "model", folder / "checkpoint")
    return Trained(steps, mining, training, stepping)


def mined(how: str, setting: Setting, work: Path) -> tuple[Path, float]:
    """The rows, mined once for all arms that train on them, and the seconds that it took."""
    rows, took = work / f"mined-{how}", work / f"mined-{how}.json"
    if not took.exists():
        shutil.rmtree(rows, ignore_errors=True)
        _, seconds = in_a_process(mine, setting, how, rows)
        write_bytes(took, orjson.dumps(seconds))
    return rows, float(took.read_bytes())


def must_agree(setting: Setting, theirs: Path, ours: Path) -> None:
    least, _ = in_a_process(least_cosine, setting, theirs, ours)
    if least <= SAME:
        raise SystemExit(
            f"{theirs}: its vectors in sentence-transformers and those of {ours} in ance differ "
            f"(cosine {least:.6f}): the comparison would be of two models"
        )


def run_arm(name: str, setting: Setting, work: Path) -> None:
    """Train an arm, unless it was, and rank the test queries by it."""
    arm, folder = ARMS[name], work / name
    if not (folder / TRAINED).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if arm.loop is not None:
            found = refreshed(arm, setting, folder)
        else:
            found = once_mined(arm, setting, work, folder)
        write_bytes(folder / TRAINED, orjson.dumps(asdict(found)))
    rank(folder / "checkpoint", setting, folder)


def rank(checkpoint: Path, setting: Setting, folder: Path) -> None:
    """Encode the corpus and search it for the test queries."""
    if manifest_name(folder / RANKED, "run").exists():
        return
    shared = ("--ckpt", checkpoint, "--data", setting.data, "--query-length", RECIPE.query_length,
              "--passage-length", RECIPE.passage_length, "--threads", setting.threads,
              "--cache-dir", folder / "cache", "--quiet")  # fmt: skip
    ance("encode", *shared, "-o", folder / "embeddings")
    ance("search", *shared, "--embeddings", folder / "embeddings", "--split", "test",
         "--depth", 100, "-o", folder / RANKED)  # fmt: skip


# ---------------------------------------------------------------- the table

Measured = dict[str, dict[str, dict[str, float]]]
"""Arm -> measure -> the result of `ance eval`."""


def measured(names: list[str], first: str, setting: Setting, work: Path) -> Measured:
    """Every arm's measures, and the paired tests of the others against `first`."""
    order = [first, *(name for name in names if name != first)]
    found = ance("eval", *(work / name / RANKED for name in order), "--data", setting.data,
                 "--split", "test", "--measures", " ".join(MEASURES), "--json")  # fmt: skip
    rows = zip(order, json.loads(found)["runs"], strict=True)
    return {name: row["measures"] for name, row in rows}


def report(names: list[str], setting: Setting, work: Path) -> Table:
    """One row an arm, tested against each of ours; DIR/results.json has the other tests, too."""
    ours = [name for name in names if name != START and ARMS[name].loop is not None]
    found = {name: measured(names, name, setting, work) for name in ours or [START]}
    took = {name: trained(work / name) for name in names if name != START}
    everything = {"arms": {name: asdict(each) for name, each in took.items()}, "against": found}
    write_bytes(work / "results.json", orjson.dumps(everything, option=orjson.OPT_INDENT_2))
    table = Table("arm", "", "steps", "mining s", "training s", "all s", MEASURES[0],
                  "95 % interval", *MEASURES[1:], *(f"against {name} (p)" for name in found),
                  box=box.MARKDOWN)  # fmt: skip
    for name in names:
        table.add_row(
            name,
            *(costs(ARMS[name].what, took[name]) if name in took else ("", "", "", "", "")),
            *figures(next(iter(found.values()))[name]),
            *(against(each[name]) for each in found.values()),
        )
    return table


def costs(what: str, each: Trained) -> tuple[str, ...]:
    seconds = (each.mining, each.training, each.all)
    return what, f"{each.steps}", *(f"{value:.0f}" for value in seconds)


def figures(row: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    first, *others = (row[measure] for measure in MEASURES)
    interval = f"{first['low']:.3f} to {first['high']:.3f}"
    return f"{first['mean']:.3f}", interval, *(f"{other['mean']:.3f}" for other in others)


def against(row: Mapping[str, Mapping[str, float]]) -> str:
    """Difference by the first measure, and p (paired randomisation, after Holm)."""
    first = row[MEASURES[0]]
    if "difference" not in first:
        return "-"
    return f"{first['difference']:+.3f} ({first['p_randomisation_holm']:.4f})"


# ---------------------------------------------------------------- the command


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--data", type=Path, help="dataset (default: ance demo's docstrings)")
    parser.add_argument("--ckpt", type=Path, help="start of all arms (default: ance demo's)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=0, help="0 = every core")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
                        help=f"only these and what they need: {', '.join(ARMS)}")  # fmt: skip
    given = parser.parse_args()
    if given.steps < REFRESHES or given.steps % REFRESHES:
        parser.error(f"--steps {given.steps}: expected a multiple of {REFRESHES}")
    packages = ("sentence_transformers", "datasets", "accelerate")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        parser.error(f"no {missing[0]} here: pip install 'sentence-transformers[train]>=5'")
    return given


def check(setting: Setting, work: Path) -> None:
    """Refuse a start that is no single plain encoder, and a work folder of another setting."""
    checkpoint = Checkpoint(setting.ckpt)
    checkpoint.need_head()
    settings = checkpoint.settings
    if (
        not checkpoint.shared
        or settings.segments > 1
        or settings.query_prefix
        or settings.passage_prefix
    ):
        raise SystemExit(f"{setting.ckpt}: expected one encoder, without prefixes and MaxP")
    identity = {**asdict(setting), "data": str(setting.data.resolve()),
                "ckpt": checkpoint.tower_hash("passage")}  # fmt: skip
    path = work / "setting.json"
    if not path.exists():
        write_bytes(path, orjson.dumps(identity))
    elif (found := orjson.loads(path.read_bytes())) != identity:
        others = ", ".join(name for name in identity if identity[name] != found[name])
        raise SystemExit(f"{work}: was begun with other {others}; name a new folder with --work")


def main() -> None:
    given = options()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # a batch of both sides is one device's
    data = given.data or given.work / "data"
    if given.data is None:
        docstring_dataset(data, DemoConfig(), Silent())
    start = given.ckpt or packaged_encoder()
    setting = Setting(data, start, given.steps, given.seed, given.threads)
    check(setting, given.work)
    wanted = set(given.arms).union(*(ARMS[name].needs for name in given.arms))
    names = [START, *(name for name in ARMS if name in wanted)]
    console = Console(width=400)

    must_agree(setting, start, start)
    for number, name in enumerate(names, 1):
        console.print(f"{number} of {len(names)}: {name}", style="bold")
        if name == START:
            rank(start, setting, given.work / START)
        else:
            run_arm(name, setting, given.work)
    console.print(report(names, setting, given.work))
    console.print(
        f"{start}: batch {RECIPE.batch_size}, queries of {RECIPE.query_length} and passages of "
        f"{RECIPE.passage_length} tokens at most, seed {setting.seed}, "
        f"{setting.threads or usable_cores()} threads, sentence-transformers "
        f"{importlib.metadata.version('sentence-transformers')}; load of the machine "
        + " ".join(f"{load:.2f}" for load in os.getloadavg())
    )


if __name__ == "__main__":
    main()
