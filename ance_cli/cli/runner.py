"""The common frame of all commands: threads, caches, skipped lines and the summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ance_cli.call import TRUST, Call, SkippedLines
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import (
    CorpusFiles,
    DataFiles,
    PassageFiles,
    PassageOverrides,
    RunStart,
)
from ance_cli.errors import UsageProblem
from ance_cli.formats.atomic import companion
from ance_cli.formats.dataset import Dataset, is_dataset, locate
from ance_cli.formats.jsonl import STDIO
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.devices import set_threads


def run_command(
    settings: CallSettings, output: Path | None, work: Callable[[Call], Summary | None]
) -> None:
    """Prepare the process, do the work, and show its summary unless the work returns None."""
    if output == STDIO and settings.json:
        raise UsageProblem(
            "--json and -o - both need stdout", hint="write the output to a file, or omit --json"
        )
    set_threads(settings.threads)
    if settings.quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if settings.longest_line != CallSettings.longest_line:
        os.environ["ANCE_LONGEST_LINE"] = str(settings.longest_line)
    if settings.trust_remote_code:
        os.environ[TRUST] = "1"
    if settings.cache_dir:
        os.environ["ANCE_CACHE_DIR"] = str(settings.cache_dir.resolve())
    from ance_cli.cli.console import ConsoleReporter, show_skipped, show_summary

    call = Call(
        reporter=ConsoleReporter(settings.quiet),
        skipped=SkippedLines() if settings.skip_bad else None,
        force=settings.force,
        dry_run=settings.dry_run,
        threads=settings.threads,
        quiet=settings.quiet,
    )
    summary = work(call)
    show_skipped(call.skipped)
    if summary is not None:
        show_summary(summary, settings.json, settings.quiet or output == STDIO)


def with_dataset_folders(values: dict[str, Any], call: Call) -> dict[str, Any]:
    """The values of a command's flags, --data being folders in the BEIR layout.

    Anything else that --data names is imported into the cache folder.
    """
    changed = dict(values)
    if isinstance(data := values.get("data"), Path):
        changed["data"] = _dataset_folder(data, call)
    if datas := values.get("datas"):
        folders = [_dataset_folder(Path(text), call) for text in datas]
        changed["datas"] = [str(folder) for folder in folders]
    return changed


def _dataset_folder(data: Path, call: Call) -> Path:
    name, colon, _ = str(data).partition(":")
    is_remote = colon == ":" and name in ("hf", "ir-datasets")
    if data.is_file() or is_remote or (data.is_dir() and not is_dataset(data)):
        from ance_cli.interop.import_dataset import import_into_cache
        from ance_cli.interop.recognition import Request

        return import_into_cache(Request([str(data)]), call)
    return data


def dataset_of(
    files: CorpusFiles | RunStart, data: Path | None = None, needs_corpus: bool = True
) -> Dataset:
    """The dataset of --data, --split, --corpus, --queries and --qrels; `data` replaces --data."""
    folder = data or (files.data if isinstance(files, CorpusFiles) else None)
    has_queries, has_labels = PassageFiles | RunStart, DataFiles | RunStart
    return locate(
        folder,
        files.split if isinstance(files, has_labels) else None,
        files.corpus,
        files.queries if isinstance(files, has_queries) else None,
        files.qrels if isinstance(files, has_labels) else None,
        needs_corpus=needs_corpus,
    )


def merged_data(files: RunStart, output: Path, call: Call) -> Path | None:
    """The folder of --data; several folders are first merged into one next to the output."""
    if not files.datas:
        return None
    if len(files.datas) == 1:
        return Path(files.datas[0])
    from ance_cli.interop.merge import merge, parse_source

    merged = companion(output, "{}.data")
    if call.dry_run and not merged.exists():
        raise UsageProblem(
            "--dry-run writes nothing, so it cannot merge several --data first",
            hint=f"run ance merge {' '.join(files.datas)} -o {merged}, then use --data {merged}",
        )
    once = replace(call, force=False, dry_run=False)
    merge([parse_source(text) for text in files.datas], merged, call=once)
    return merged


def checkpoint_of(ckpt: Path, overrides: PassageOverrides) -> Checkpoint:
    """The checkpoint, with the encoding settings that the caller set."""
    return Checkpoint(ckpt).with_settings(**vars(overrides))
