"""What every command does around its stage: threads, caches, broken lines, the summary."""

from __future__ import annotations

import os
from collections.abc import Callable

from ance_cli.cli.options import Flags
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import Dataset, locate
from ance_cli.formats.jsonl import STDIO, Skipped
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import set_threads
from ance_cli.progress import Reporter
from ance_cli.stages.summary import Summary

COMMON = "cache_dir dry_run quiet json"
PINS = "query_length passage_length separator segmentation max_segments"


def dataset_of(flags: Flags) -> Dataset:
    """The dataset that --data, --split, --corpus, --queries and --qrels name."""
    return locate(
        flags.data,
        flags.get("split"),
        flags.get("corpus"),
        flags.get("queries"),
        flags.get("qrels"),
    )


def checkpoint_of(flags: Flags) -> Checkpoint:
    """The checkpoint that --ckpt names, with the pins that were overridden."""
    return Checkpoint(flags.ckpt).with_pins(
        **{name: flags.get(name) for name in PINS.split() if name in flags}
    )


def run_stage(flags: Flags, stage: Callable[[Reporter, Skipped | None], Summary]) -> None:
    """Prepare the process, run the stage, show its summary."""
    output = flags.get("output")
    if output == STDIO and flags.json:
        raise UsageProblem(
            "--json and -o - both want stdout", hint="write the output to a file, or drop --json"
        )
    set_threads(flags.get("threads", 0))
    if flags.get("cache_dir"):
        os.environ["ANCE_CACHE_DIR"] = str(flags.cache_dir.resolve())
    from ance_cli.cli.console import ConsoleReporter, show_skipped, show_summary

    reporter = ConsoleReporter(flags.quiet)
    skipped = Skipped() if flags.get("skip_bad") else None
    summary = stage(reporter, skipped)
    show_skipped(skipped)
    show_summary(summary, flags.json, flags.quiet or output == STDIO)
