"""`ance import`: converts the files of other tools into a dataset folder for every command.

Records are read and written one at a time; only hashes of the ids and texts are kept in memory.
Negatives and runs of a source become `negatives/SPLIT.jsonl` and `runs/SPLIT.trec`.
What was understood is shown before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ance_cli.call import Call, SkippedLines
from ance_cli.config.interop import SplitConfig
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats import atomic, lease
from ance_cli.formats.dataset import Dataset, splits_of
from ance_cli.formats.hashing import cache_dir, hash_json
from ance_cli.formats.jsonl import refuse, refuse_stdio
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, planned, summary_of
from ance_cli.interop.preview import describe
from ance_cli.interop.recognition import Request, parts_of
from ance_cli.interop.records import Part
from ance_cli.interop.split import divide, parse_shares
from ance_cli.interop.writing import DatasetWriter
from ance_cli.progress import Bar, Reporter

_SHOWN_EVERY = 1 << 16


def import_dataset(
    request: Request,
    output: Path,
    call: Call = Call(),
) -> Summary:
    """Write a dataset folder from all sources of `request`; `BadInput` names file and line."""
    refuse_stdio(output, "a dataset folder")
    parts, skipped_files = parts_of(request)
    return _import(parts, skipped_files, request, output, call)


def _import(
    parts: Sequence[Part], skipped_files: Sequence[Path], request: Request, output: Path, call: Call
) -> Summary:
    shares = parse_shares(request.shares) if request.shares else None
    plan = _plan(parts, request, output)
    if manifest := plan.published(call.force):
        return summary_of(manifest, output, up_to_date=True)
    for part in parts:
        for line in describe(part, count_all=call.dry_run):
            call.reporter.say(line)
    for path in skipped_files:
        call.reporter.say(f"{path}: skipped")
    if call.dry_run:
        return planned(plan.kind, output, plan.shaped_by)
    with lease.of_output(output):
        with plan.new_partial() as folder:
            stats = _write(folder, parts, call)
            if shares is not None:
                stats["division"] = _divide(folder, shares, request, call)
        _warn_of_missing(stats, call.reporter)
        manifest = plan.publish_folder({}, stats)
    return summary_of(manifest, output, up_to_date=False)


def import_into_cache(request: Request, call: Call = Call()) -> Path:
    """The dataset folder of a request, imported into the cache folder unless it is there.

    Its name is the hash of what is imported, so that a changed source makes another folder.
    """
    parts, skipped_files = parts_of(request)
    folder = cache_dir() / "datasets" / _plan(parts, request, Path()).fingerprint
    for source in request.sources:
        call.reporter.say(f"{source}: read as the dataset {folder}")
    _import(parts, skipped_files, request, folder, replace(call, force=False, dry_run=False))
    return folder


def _plan(parts: Sequence[Part], request: Request, output: Path) -> Plan:
    forms: dict[str, list[str]] = {}
    inputs: dict[str, list[str]] = {}
    for part in parts:
        key = " ".join(filter(None, (part.role.name.lower(), part.split)))
        forms.setdefault(key, []).append(part.what)
        inputs.setdefault(key, []).append(part.fingerprint())
    return Plan(
        "dataset", output,
        shaped_by={
            "forms": forms, "with_url": request.with_url, "columns": request.columns,
            "min_score": request.min_score, "chunk": request.chunk, "shares": request.shares,
            "seed": request.seed if request.shares else None,
        },
        inputs={key: hash_json(hashes) for key, hashes in inputs.items()},
        ran_with={"sources": [part.name for part in parts]},
        reads=[part.name for part in parts],
    )  # fmt: skip


def _divide(folder: Path, shares: dict[str, float], request: Request, call: Call) -> dict[str, Any]:
    """Divide the only split of the dataset being written into train, dev and test."""
    found = splits_of(folder)
    if len(found) != 1:
        raise UsageProblem(
            f"--split {request.shares}: the import has {len(found)} splits: {', '.join(found)}",
            hint="import without it, then divide one: ance split DATA --split NAME -o OUT",
        )
    whole = folder / ".whole"
    whole.mkdir()
    for kind in ("qrels", "negatives", "runs"):
        if (folder / kind).exists():
            (folder / kind).rename(whole / kind)
    dataset = Dataset(
        folder / "corpus.jsonl", folder / "queries.jsonl", whole / "qrels" / f"{found[0]}.tsv"
    )
    config = SplitConfig(shares=request.shares or "", seed=request.seed)
    stats = divide(dataset, whole, folder, found[0], shares, config, call)
    atomic.remove(whole)
    return stats


def _write(folder: Path, parts: Sequence[Part], call: Call) -> dict[str, Any]:
    with (
        DatasetWriter(folder, parts) as writer,
        call.reporter.task("importing", len(parts), "source") as bar,
    ):
        for part in parts:
            _write_part(part, writer, call.skipped, bar)
            bar.advance()
        writer.finish()
    if not (writer.stats["passages"] or writer.stats["queries"] or writer.stats["labels"]):
        raise BadInput(f"{parts[0].name}: the source has no records", hint="check the path")
    return writer.stats


def _write_part(part: Part, writer: DatasetWriter, skipped: SkippedLines | None, bar: Bar) -> None:
    for count, (number, record) in enumerate(part.read(skipped), start=1):
        try:
            writer.take(record, part, number)
        except BadInput as problem:
            refuse(problem, skipped)
        if count % _SHOWN_EVERY == 0:
            bar.describe(f"{Path(part.name).name}: {count:,} records")


def _warn_of_missing(stats: dict[str, Any], reporter: Reporter) -> None:
    """Warn about checks that were impossible, because a part of the dataset was not imported."""
    if count := stats.get("labels_of_documents"):
        reporter.say(
            f"{count:,} labels name documents that were cut: each passage of such a document is a "
            "positive"
        )
    has_query_ids = stats["labels"] or stats["runs"]
    if not stats["passages"]:
        reporter.warn(
            "no documents were imported, so no document id was checked; "
            "name a corpus with --corpus when you use the dataset"
        )
    if not stats["queries"] and has_query_ids:
        reporter.warn("no queries were imported, so no query id was checked")
