"""What every command does around its stage: threads, caches, broken lines, the summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ance_cli.call import Call, SkippedLines
from ance_cli.cli.options import Flags
from ance_cli.errors import UsageProblem
from ance_cli.formats.dataset import Dataset, locate
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import set_threads

COMMON = "config cache_dir dry_run quiet json"
ENCODING_SETTINGS = "query_length passage_length separator segmentation max_segments"


def data_of(flags: Flags, call: Call) -> Path | None:
    """The folder that --data names; several are merged beside the output first."""
    if not flags.datas:
        return None
    if len(flags.datas) == 1:
        return Path(flags.datas[0])
    from ance_cli.interop.merge import merge, parse_source

    merged: Path = flags.output.with_name(f"{flags.output.name}.data")
    if flags.dry_run and not merged.exists():
        raise UsageProblem(
            "--dry-run makes nothing, and several --data are merged before anything else",
            hint=f"ance merge {' '.join(flags.datas)} -o {merged}, then --data {merged}",
        )
    merge(
        [parse_source(text) for text in flags.datas],
        merged,
        call=replace(call, force=False, dry_run=False),
    )
    return merged


def dataset_of(flags: Flags, data: Path | None = None) -> Dataset:
    """The dataset that --data, --split, --corpus, --queries and --qrels name."""
    return locate(
        data or flags.get("data"),
        flags.get("split"),
        flags.get("corpus"),
        flags.get("queries"),
        flags.get("qrels"),
    )


def checkpoint_of(flags: Flags) -> Checkpoint:
    """The checkpoint that --ckpt names, with the pins that were overridden."""
    return Checkpoint(flags.ckpt).with_settings(
        **{name: flags.get(name) for name in ENCODING_SETTINGS.split() if name in flags}
    )


def run_stage(flags: Flags, stage: Callable[[Call], Summary]) -> None:
    """Prepare the process, run the stage, show its summary."""
    output = flags.get("output")
    if output == STDIO and flags.json:
        raise UsageProblem(
            "--json and -o - both want stdout", hint="write the output to a file, or drop --json"
        )
    set_threads(flags.get("threads", 0))
    if flags.get("quiet") or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # its bars, in downloads too
    if flags.get("cache_dir"):
        os.environ["ANCE_CACHE_DIR"] = str(flags.cache_dir.resolve())
    from ance_cli.cli.console import ConsoleReporter, show_skipped, show_summary

    call = Call(
        reporter=ConsoleReporter(flags.quiet),
        skipped=SkippedLines() if flags.get("skip_bad") else None,
        force=flags.get("force", False),
        dry_run=flags.get("dry_run", False),
        threads=flags.get("threads", 0),
        quiet=flags.quiet,
    )
    summary = stage(call)
    show_skipped(call.skipped)
    show_summary(summary, flags.json, flags.quiet or output == STDIO)
